//! The test harness: a VM, a guest and a QMP client in a few lines
