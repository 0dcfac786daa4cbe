//! Rows about chains of images, jobs and bitmaps.

use serde_json::json;

use super::row::{Hand, MIB, Row, row};

/// A chain of images and the jobs on it; a job that is named in vain is refused by both.
pub(super) fn snapshots_and_jobs() -> Vec<Row> {
    let image = |set: u32, name: &str| {
        let file = json!({"driver": "file", "filename": format!("/dev/fdset/{set}")});
        [
            row("add-fd", json!({"fdset-id": set})).with(Hand::Image),
            row(
                "blockdev-add",
                json!({"driver": "qcow2", "node-name": name, "backing": null, "file": file}),
            ),
        ]
    };
    let sync = |name: &str| {
        json!({"node-name": "first", "snapshot-file": name, "mode": "existing",
            "snapshot-node-name": "third"})
    };
    let mut rows: Vec<Row> = image(60, "base").into_iter().collect();
    rows.extend(image(61, "first"));
    rows.extend([
        row(
            "blockdev-snapshot",
            json!({"node": "base", "overlay": "first"}),
        ),
        row("add-fd", json!({"fdset-id": 62})).with(Hand::Image),
        row("blockdev-snapshot-sync", sync("/dev/fdset/62")),
        row(
            "transaction",
            json!({"actions": [{"type": "abort", "data": {}}]}),
        ),
        row(
            "block-stream",
            json!({"device": "first", "job-id": "stream", "auto-dismiss": false}),
        ),
        row(
            "block-commit",
            json!({"device": "base", "job-id": "commit"}),
        ),
    ]);
    rows.extend([
        row(
            "blockdev-reopen",
            json!({"options": [{"driver": "qcow2", "node-name": "none", "file": "none"}]}),
        ),
        row(
            "change-backing-file",
            json!({"device": "none", "image-node-name": "none", "backing-file": "x"}),
        ),
        row("x-debug-query-block-graph", json!({})),
        row(
            "blockdev-set-active",
            json!({"node-name": "base", "active": true}),
        ),
        row(
            "blockdev-snapshot-internal-sync",
            json!({"device": "first", "name": "kept"}),
        ),
        row(
            "blockdev-snapshot-delete-internal-sync",
            json!({"device": "none", "name": "kept"}),
        ),
        row("query-block-pauses", json!({})),
        row(
            "x-blockdev-set-iothread",
            json!({"node-name": "none", "iothread": null}),
        ),
        row("add-fd", json!({"fdset-id": 63})).with(Hand::Disk),
        row(
            "blockdev-create",
            json!({"job-id": "create", "options": {"driver": "file",
                "filename": "/dev/fdset/63", "size": MIB}}),
        ),
    ]);
    for verb in ["pause", "resume", "cancel", "complete"] {
        let (plain, block) = match verb {
            "pause" => ("job-pause", "block-job-pause"),
            "resume" => ("job-resume", "block-job-resume"),
            "cancel" => ("job-cancel", "block-job-cancel"),
            _ => ("job-complete", "block-job-complete"),
        };
        rows.push(row(plain, json!({"id": "none"})));
        rows.push(row(block, json!({"device": "none"})));
    }
    for command in [
        "job-dismiss",
        "job-finalize",
        "block-job-dismiss",
        "block-job-finalize",
    ] {
        rows.push(row(command, json!({"id": "none"})));
    }
    rows.push(row(
        "block-job-set-speed",
        json!({"device": "none", "speed": 1}),
    ));
    rows
}

/// Bitmaps of a node that is in memory, and one that its image keeps.
pub(super) fn bitmaps() -> Vec<Row> {
    let of = |name: &str| json!({"node": "recorded", "name": name});
    let merge = json!({"node": "recorded", "target": "a", "bitmaps": ["b",
        {"node": "recorded", "name": "b"}]});
    let mut rows = vec![
        row("add-fd", json!({"fdset-id": 65})).with(Hand::Image),
        row(
            "blockdev-add",
            json!({"driver": "qcow2", "node-name": "recorded", "backing": null, "file": {
            "driver": "file", "filename": "/dev/fdset/65"}}),
        ),
        row(
            "block-dirty-bitmap-add",
            json!({"node": "recorded", "name": "a", "persistent": true}),
        ),
        row("block-dirty-bitmap-add", of("b")),
        row("block-dirty-bitmap-merge", merge),
    ];
    for command in [
        "block-dirty-bitmap-disable",
        "block-dirty-bitmap-enable",
        "block-dirty-bitmap-clear",
        "block-dirty-bitmap-remove",
    ] {
        rows.push(row(command, of("a")));
    }
    rows.push(row("x-debug-block-dirty-bitmap-sha256", of("b")));
    rows.push(row("blockdev-del", json!({"node-name": "recorded"})));
    rows
}
