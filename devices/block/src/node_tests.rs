//! The seam of nodes, with an overlay in memory: status, length, exchange under load.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;

use crate::engine::executor::own_waker;
use crate::toy::{CLUSTER, Toy};
use crate::{
    BackingSlot, Drain, IoThread, IoThreadSpec, NodeRef, Place, Root, Segments, Status, WriteFlags,
    ZeroFlags,
};

fn iothread() -> IoThread {
    IoThread::start(IoThreadSpec {
        id: "seam".to_owned(),
    })
    .expect("io-thread")
}

fn filled(name: &str, byte: u8) -> NodeRef {
    let node = Toy::node(name, 4 * CLUSTER, BackingSlot::new(None));
    let (thread, theirs) = (iothread(), node.clone());
    let task = move |io| async move {
        let from = Segments::owned(4 * 4096, 1).expect("memory");
        from.all().copy_from(&[byte; 4 * 4096]);
        let flags = WriteFlags::default();
        theirs.write(&io, 0, from.all(), flags).await
    };
    thread.run(task).expect("answer").expect("written");
    node
}

#[test]
fn status_tells_data_zeros_and_what_shows_through_and_resize_adds_zeros() {
    let slot = BackingSlot::new(Some(filled("base", 1)));
    let node = Toy::node("top", 3 * CLUSTER, slot);
    let task = move |io| async move {
        let flags = ZeroFlags::default();
        node.write_zeroes(&io, CLUSTER, CLUSTER, flags).await?;
        node.write_zeroes(&io, 2 * CLUSTER, 1, flags).await?;
        let resized = node.resize(&io, 4 * CLUSTER).await;
        resized.map_err(std::io::Error::other)?;
        let mut seen = Vec::new();
        let mut at = 0;
        while at < node.len() {
            let status = node.status(&io, at, node.len() - at).await?;
            at += status.len;
            seen.push(status);
        }
        assert!(node.status(&io, at, 1).await.is_err(), "outside");
        node.change_backing(&io, Some("other.img"), Some("raw"))
            .await?;
        let name = node.backing_name();
        Ok::<_, std::io::Error>((seen, name))
    };
    let (seen, name) = iothread().run(task).expect("answer").expect("works");
    let cluster = |place| Status {
        len: CLUSTER,
        place,
    };
    let data = Place::Data { at: None };
    let wanted = [Place::Below, Place::Zero, data, Place::Zero].map(cluster);
    assert_eq!(seen, wanted);
    assert_eq!(name, Some(("other.img".to_owned(), Some("raw".to_owned()))));
}

/// Two tasks read the first and the last cluster of a node again and again, in one request, while
/// the node below is exchanged: each request sees one node below.
#[test]
fn request_sees_one_child_from_its_start_to_its_end_while_children_are_exchanged() {
    let (one, two) = (filled("one", 1), filled("two", 2));
    let slot = BackingSlot::new(Some(one.clone()));
    let root = Root::from(Toy::node("top", 4 * CLUSTER, slot.clone()));
    let stop = Arc::new(AtomicBool::new(false));
    let (tell, told) = mpsc::channel();
    let threads = [iothread(), iothread()];
    for thread in &threads {
        let (root, stop, tell) = (root.clone(), Arc::clone(&stop), tell.clone());
        thread.spawn(move |io| async move {
            let seat = root.gate().take_seat(own_waker().await);
            let into = Segments::owned(2, 1).expect("memory");
            let mut seen = [0; 2];
            let mut mixed = 0;
            while !stop.load(Ordering::SeqCst) {
                seat.pass().await;
                let node = root.node();
                for (index, at) in [(0, 0), (1, 4 * CLUSTER - 1)] {
                    let part = into.all().part(index, 1);
                    node.read(&io, at, part).await.expect("read");
                    // Lets the other tasks and the main loop in between both halves.
                    std::thread::yield_now();
                }
                into.all().copy_to(&mut seen);
                mixed += u32::from(seen[0] != seen[1] || seen[0] == 0);
            }
            tell.send(mixed).expect("listener");
        });
    }
    for round in 0..200 {
        let drain = Drain::begin(vec![root.gate().clone()]);
        let next = if round % 2 == 0 { &two } else { &one };
        let old = slot.replace(Some(next.clone()));
        let pause = drain.end();
        assert!(pause > std::time::Duration::ZERO);
        assert!(old.is_some_and(|old| !old.is(next)));
    }
    stop.store(true, Ordering::SeqCst);
    for _ in &threads {
        assert_eq!(told.recv().expect("both end"), 0);
    }
}
