//! The virtual machine: KVM, memory, machine, QMP commands; the binary sesame
