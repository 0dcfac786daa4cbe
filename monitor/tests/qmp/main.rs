//! The server over real sockets: what clients see, whose fds are whose, and how many clients and
//! slow ones share it.

mod descriptors;
mod flow;
mod protocol;
mod rights;
mod stage;
mod tls;
