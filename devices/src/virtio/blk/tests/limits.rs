//! Limits on what a disk may do, and how long its requests took.

use block::{BlockGraph, Operation, ThrottleLimits};
use virtio_bindings::virtio_blk::{VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT};

use super::driver::Piece::{In, Out};
use super::driver::{DATA, Rig};
use super::nodes::file_node;

#[test]
fn reads_and_writes_beyond_a_disks_limits_wait_until_they_are_lifted_and_flushes_do_not() {
    let mut limits = ThrottleLimits::default();
    // What waits would wait for an hour.
    limits.bytes.total.average = 1;
    let mut graph = BlockGraph::new();
    for (kind, data) in [
        (VIRTIO_BLK_T_IN, In(DATA, 4096)),
        (VIRTIO_BLK_T_OUT, Out(DATA, 4096)),
    ] {
        let (node, _file) = file_node(64 << 10);
        let rig = Rig::new(node, 1);
        let view = rig.view();
        let mut driver = rig.start(0, &view);
        let limiter = rig.disk.limiter().clone();
        let limited = graph.limit(&limiter, "vda", None, limits);
        limited.expect("limits");
        for sector in 0..3 {
            driver.offer(kind, sector, &[data]);
        }
        driver.offer(VIRTIO_BLK_T_FLUSH, 0, &[]);
        driver.kick();
        driver.wait_for(2);
        let totals = rig.disk.totals();
        assert_eq!(totals.reads.done + totals.writes.done, 1);
        assert_eq!(totals.flushes.done, 1);
        let lifted = graph.limit(&limiter, "vda", None, ThrottleLimits::default());
        lifted.expect("no limits");
        driver.wait();
    }
}

#[test]
fn a_disk_has_one_histogram_of_all_its_queues() {
    let (node, _file) = file_node(64 << 10);
    let rig = Rig::new(node, 2);
    let view = rig.view();
    let histograms = rig.disk.histograms();
    let hour = 3600 * 1_000_000_000;
    assert!(histograms.set(Operation::Read, Some(vec![hour])));
    for queue in 0..2 {
        let mut driver = rig.start(queue, &view);
        driver.request(VIRTIO_BLK_T_IN, 0, &[In(DATA, 512)]);
        // It is not there, and was not tried.
        driver.request(VIRTIO_BLK_T_IN, 1 << 40, &[In(DATA, 512)]);
        driver.request(VIRTIO_BLK_T_FLUSH, 0, &[]);
    }
    let bins = histograms.bins(Operation::Read).expect("asked for");
    assert_eq!(bins.counts, [2, 0]);
    assert_eq!(histograms.bins(Operation::Flush), None);
}
