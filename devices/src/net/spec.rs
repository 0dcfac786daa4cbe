//! What a netdev is to be: resolved, every default applied.

use std::time::Duration;

use fdset::SocketAddress;

/// One netdev.
#[derive(Clone, Debug)]
pub struct NetdevSpec {
    /// Its id.
    pub id: String,
    /// Where its packets go and come from.
    pub kind: NetdevKind,
}

/// The kinds of netdev.
#[derive(Clone, Debug)]
pub enum NetdevKind {
    /// A tap interface.
    Tap(TapSpec),
    /// A stream socket.
    Stream(StreamSpec),
    /// A datagram socket; one of the addresses is there.
    Dgram {
        /// Where packets come in.
        local: Option<SocketAddress>,
        /// Where they go.
        remote: Option<SocketAddress>,
    },
    /// Another process, by vhost-user.
    VhostUser {
        /// The chardev where it comes and goes.
        chardev: String,
        /// How many pairs of queues it serves, at least 1.
        pairs: u16,
    },
    /// A port of a hub.
    HubPort {
        /// The hub's number.
        hub: i32,
    },
}

/// A tap interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TapSpec {
    /// Its queues.
    pub queues: TapQueues,
    /// How many bytes of the guest's may be on their way; `None` for no limit.
    pub sndbuf: Option<i32>,
    /// Who moves its packets.
    pub vhost: TapVhost,
}

/// Who moves a tap's packets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TapVhost {
    /// We do.
    Off,
    /// The kernel, by devices that were handed in: names or numbers, one for each queue.
    Handed(Vec<String>),
    /// The kernel, by devices that are opened.
    Opened,
}

/// Where a tap's queues come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TapQueues {
    /// They were handed in: names or numbers, at least one.
    Handed(Vec<String>),
    /// They are opened.
    Named {
        /// The interface.
        ifname: String,
        /// How many, at least 1.
        count: u16,
        /// Whether packets carry a header.
        header: bool,
    },
}

/// A stream socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamSpec {
    /// What `info network` calls it: `stream`, or `socket` for the older kind.
    pub kind: &'static str,
    /// Where it is.
    pub address: SocketAddress,
    /// Who calls whom.
    pub role: StreamRole,
}

/// Who calls whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamRole {
    /// We listen; peers come one after the other.
    Server,
    /// We call, once.
    Client,
    /// We call, and call again this long after each loss or failure.
    Reconnecting(Duration),
}
