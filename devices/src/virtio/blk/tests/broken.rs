//! Chains that no driver should make: the device says that it is broken, once, and never panics.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use proptest::prelude::*;
use virtio_bindings::virtio_blk::VIRTIO_BLK_T_IN;
use virtio_queue::desc::RawDescriptor;
use virtio_queue::desc::split::Descriptor;
use virtio_queue::mock::MockSplitQueue;
use vm_memory::{Bytes, GuestAddress};

use super::driver::Piece::{In, Out};
use super::driver::{DATA, Driver, Rig};
use super::nodes::file_node;
use crate::memory::GuestMemView;
use crate::virtio::blk::VirtioDevice;
use crate::virtio::blk::request::Request;

/// A little more than the memory of the parser's test.
const MEMORY_END: u64 = (1 << 20) + 0x100;
/// Where it keeps the header.
const HEADER: u64 = 0x8_0000;

/// Offers what `offer` makes and waits until the device says that it is broken; then checks that a
/// stopped and restarted queue works again.
fn breaks(offer: impl FnOnce(&mut Driver<'_>)) {
    let (node, _file) = file_node(8192);
    let rig = Rig::new(node, 1);
    let view = rig.view();
    let heard = rig.listen_for_reset();
    let mut driver = rig.start(0, &view);
    offer(&mut driver);
    driver.kick();
    heard.recv().expect("the device says so");
    assert_eq!(driver.used(), 0, "nothing was answered");
    driver.stop();
    rig.disk.reset();
    assert_eq!(rig.told.broken.load(Ordering::SeqCst), 1, "it says so once");
}

#[test]
fn descriptor_loop_breaks_the_device() {
    breaks(|driver| driver.offer_raw(&[(DATA, 16, 1, 1), (DATA, 16, 1, 0)]));
}

#[test]
fn next_descriptor_outside_the_table_breaks_the_device() {
    breaks(|driver| driver.offer_raw(&[(DATA, 16, 1, 999)]));
}

#[test]
fn request_without_room_for_a_status_breaks_the_device() {
    breaks(|driver| driver.offer_pieces(&[Out(DATA, 16)]));
}

#[test]
fn readable_after_writable_breaks_the_device() {
    breaks(|driver| driver.offer_pieces(&[Out(DATA, 16), In(DATA + 64, 1), Out(DATA, 16)]));
}

#[test]
fn buffer_outside_memory_breaks_the_device() {
    breaks(|driver| {
        let (header, status) = driver.prepare(VIRTIO_BLK_T_IN, 0);
        let data = In(u64::MAX - 511, 512);
        driver.offer_pieces(&[Out(header, 16), data, In(status, 1)]);
    });
}

#[test]
fn indirect_table_of_odd_length_breaks_the_device() {
    breaks(|driver| driver.offer_raw(&[(DATA, 17, 4, 0)]));
}

proptest! {
    #[test]
    fn no_descriptor_table_makes_the_parser_panic(
        table in prop::collection::vec(
            (prop_oneof![0..MEMORY_END, any::<u64>()], any::<u16>(), 0..8u16, 0..20u16),
            16,
        ),
        kind in prop_oneof![0..16u8, any::<u8>()],
        sector in any::<[u8; 8]>(),
    ) {
        let view = Arc::new(
            GuestMemView::from_ranges(&[(GuestAddress(0), 1 << 20)]).expect("memory"),
        );
        let mock = MockSplitQueue::create(&*view, GuestAddress(0x1000), 16);
        let mut descriptors: Vec<_> = table
            .iter()
            .map(|&(address, len, flags, next)| {
                let split = Descriptor::new(address, len.into(), flags, next);
                RawDescriptor::from(split)
            })
            .collect();
        // Half of the first descriptors lead to a header, clear of the rings.
        if table[0].0 % 2 == 0 {
            let (_, len, flags, next) = table[0];
            let split = Descriptor::new(HEADER, len.into(), flags, next);
            descriptors[0] = RawDescriptor::from(split);
        }
        let header = [&[kind, 0, 0, 0, 0, 0, 0, 0], &sector[..]].concat();
        view.write_slice(&header, GuestAddress(HEADER)).expect("inside");
        let chain = mock.build_multiple_desc_chains(&descriptors).expect("chain");
        let mut request = Request::new();
        if request.parse(&view, chain).is_ok() {
            let written = request.finish(&view).expect("a parsed request has a status");
            prop_assert!(written >= 1);
        }
    }
}
