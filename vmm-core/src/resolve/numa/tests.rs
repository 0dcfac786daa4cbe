use qapi_schema::input::{FromInput, Mode, Path};
use serde_json::{Value, json};

use super::*;

const MIB: u64 = 1 << 20;

fn draft(hmat: bool) -> NumaDraft {
    NumaDraft::new(NumaFacts {
        topology: CpuTopology {
            sockets: 2,
            dies: 1,
            cores: 2,
            threads: 1,
        },
        hmat,
    })
}

fn say(draft: &mut NumaDraft, piece: Value) -> Result<(), String> {
    let piece = NumaOptions::from_input(piece, &Path::Root, Mode::Json);
    let taken = piece.and_then(|piece| draft.take(piece));
    taken.map_err(|error| error.desc)
}

fn two_nodes(hmat: bool) -> NumaDraft {
    let mut draft = draft(hmat);
    for memdev in ["m0", "m1"] {
        say(&mut draft, json!({"type": "node", "memdev": memdev})).unwrap();
    }
    draft
}

fn finish(draft: &NumaDraft) -> Result<NumaSpec, String> {
    let spec = draft.finish(128 * MIB, |_| Some(64 * MIB));
    spec.map(Option::unwrap_or_default)
        .map_err(|error| error.desc)
}

#[test]
fn sockets_are_dealt_out_in_turns_unless_somebody_says_otherwise() {
    let mut draft = two_nodes(false);
    assert_eq!(finish(&draft).unwrap().cpus, [0, 0, 1, 1]);
    let cpu = json!({"type": "cpu", "node-id": 1, "socket-id": 0, "core-id": 1});
    say(&mut draft, cpu).unwrap();
    assert_eq!(finish(&draft).unwrap().cpus, [0, 1, 0, 0]);
    let whole = json!({"type": "cpu", "node-id": 0, "socket-id": 0});
    assert_eq!(
        say(&mut draft, whole).unwrap_err(),
        "CPU is already assigned to node-id: 1"
    );
}

#[test]
fn a_piece_that_contradicts_is_refused() {
    let mut draft = two_nodes(false);
    for (piece, text) in [
        (
            json!({"type": "node", "nodeid": 1}),
            "Duplicate NUMA nodeid: 1",
        ),
        (
            json!({"type": "node", "nodeid": 2, "cpus": [4]}),
            "CPU index (4) should be smaller than maxcpus (4)",
        ),
        (
            json!({"type": "cpu", "node-id": 0, "socket-id": 2}),
            "no match found",
        ),
        (
            json!({"type": "dist", "src": 0, "dst": 0, "val": 20}),
            "Local distance of node 0 should be 10.",
        ),
        (
            json!({"type": "dist", "src": 0, "dst": 1, "val": 9}),
            "NUMA distance (9) is invalid, it shouldn't be less than 10.",
        ),
    ] {
        assert_eq!(say(&mut draft, piece).unwrap_err(), text);
    }
    let off = json!({"type": "node", "nodeid": 2, "initiator": 0});
    assert!(say(&mut draft, off).unwrap_err().contains("hmat=on"));
    assert_eq!(draft.nodes.len(), 2);
}

#[test]
fn all_memory_belongs_to_nodes_and_no_number_is_left_out() {
    let mut draft = two_nodes(false);
    assert_eq!(
        draft.finish(64 * MIB, |_| Some(64 * MIB)).unwrap_err().desc,
        "total memory for NUMA nodes (0x8000000) should equal RAM size (0x4000000)"
    );
    say(&mut draft, json!({"type": "node", "nodeid": 3})).unwrap();
    assert_eq!(finish(&draft).unwrap_err(), "numa: Node ID missing: 2");
}

#[test]
fn a_distance_counts_both_ways_unless_one_pair_differs() {
    let mut draft = two_nodes(false);
    assert_eq!(finish(&draft).unwrap().distances, [0; 0]);
    say(
        &mut draft,
        json!({"type": "dist", "src": 0, "dst": 1, "val": 30}),
    )
    .unwrap();
    assert_eq!(finish(&draft).unwrap().distances, [10, 30, 30, 10]);
    say(
        &mut draft,
        json!({"type": "dist", "src": 1, "dst": 0, "val": 40}),
    )
    .unwrap();
    assert_eq!(finish(&draft).unwrap().distances, [10, 30, 40, 10]);
    say(&mut draft, json!({"type": "node"})).unwrap();
    assert!(
        draft
            .distances()
            .unwrap_err()
            .desc
            .contains("node 0 and 2 is missing")
    );
}

#[test]
fn a_node_with_cpus_is_its_own_initiator_and_others_name_one() {
    let mut draft = two_nodes(true);
    say(&mut draft, json!({"type": "cpu", "node-id": 0})).unwrap();
    assert!(
        finish(&draft)
            .unwrap_err()
            .contains("initiator of NUMA node 1 is missing")
    );
    draft.nodes[1].as_mut().unwrap().initiator = Some(0);
    let nodes = finish(&draft).unwrap().nodes;
    assert_eq!((nodes[0].initiator, nodes[1].initiator), (Some(0), Some(0)));
    draft.nodes[0].as_mut().unwrap().initiator = Some(1);
    assert_eq!(
        finish(&draft).unwrap_err(),
        "The initiator of CPU NUMA node 0 should be itself."
    );
}
