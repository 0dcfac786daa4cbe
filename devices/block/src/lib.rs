//! The block graph and its io_uring engine
