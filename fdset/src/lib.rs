//! Passed file descriptors: the registry, and the one open
