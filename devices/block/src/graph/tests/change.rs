//! Changes under running users: of the shape, and of options.

use super::*;

/// Puts an overlay in memory into the graph.
pub(super) fn overlay(graph: &mut BlockGraph, name: &str, backing: Option<&str>) {
    let below = backing.map(|name| graph.node(name).expect("there").node().clone());
    let mut children = Children::default();
    let slot = place::place_backing(&mut children, below);
    let entry = Entry {
        node: crate::toy::Toy::node(name, 1 << 20, slot),
        filename: name.to_owned(),
        made: null(None).driver,
        owner: Owner::Monitor,
        keeps_access: false,
        force_share: false,
        children,
        devices: Vec::new(),
        jobs: Vec::new(),
    };
    graph.nodes.insert(name.to_owned(), entry);
}

#[test]
fn child_is_replaced_under_its_parent_and_the_graph_and_the_node_agree() {
    let mut graph = BlockGraph::new();
    graph.add(&door(), null(Some("one"))).expect("add");
    graph.add(&door(), null(Some("two"))).expect("add");
    graph.add(&door(), raw("disk", on("one"))).expect("add");
    overlay(&mut graph, "top", Some("disk"));
    let root = graph.attach("top", "vda", Usage::disk(false, false));
    let root = root.expect("free");
    let seat = root.gate().take_seat(std::task::Waker::noop().clone());
    drop(seat);
    graph.replace_child("disk", "file", "two").expect("both");
    graph.replace_child("top", "backing", "one").expect("both");
    assert_eq!(
        refusal(graph.replace_child("disk", "backing", "two")),
        "Node 'disk' has no child 'backing'"
    );
    let parents = |name: &str| {
        let parents = graph.node(name).expect("there").parents();
        parents.map(|(_, name)| name.to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(
        (parents("one"), parents("two")),
        (vec!["top".to_owned()], vec!["disk".to_owned()])
    );
}

#[test]
fn snapshot_moves_the_disk_to_the_overlay_and_a_second_use_of_it_is_refused() {
    let mut graph = BlockGraph::new();
    graph.add(&door(), null(Some("base"))).expect("add");
    graph.add(&door(), raw("disk", on("base"))).expect("add");
    for name in ["one", "two"] {
        overlay(&mut graph, name, None);
    }
    let root = graph.attach("disk", "vda", Usage::disk(false, false));
    let root = root.expect("free");
    let mut sketch = graph.sketch();
    let first = graph
        .plan_snapshot(&mut sketch, "disk", "one")
        .expect("free");
    let plan = |sketch: &mut sketch::Sketch, node: &str, over: &str| {
        refusal(graph.plan_snapshot(sketch, node, over))
    };
    assert!(plan(&mut sketch, "nobody", "two").contains("nobody"));
    assert_eq!(
        plan(&mut sketch, "one", "base"),
        "The overlay is already in use"
    );
    let drain = graph.drain(&["disk"]);
    let old = graph.append(&first);
    drop(drain);
    drop(old);
    assert_eq!(root.node().name(), "one");
    assert_eq!(graph.chain("one"), ["one", "disk"]);
    assert_eq!(
        graph
            .node("one")
            .expect("there")
            .devices()
            .collect::<Vec<_>>(),
        ["vda"]
    );
    let mut sketch = graph.sketch();
    assert_eq!(
        refusal(graph.plan_snapshot(&mut sketch, "disk", "one")),
        "The overlay is already in use"
    );
    let held = [("one".to_owned(), Grip::Work)];
    graph.hold(&held, "job0", "commit", &Gate::new());
    assert_eq!(
        refusal(graph.plan_snapshot(&mut sketch, "one", "two")),
        "Node 'one' is busy: block device is in use by block job: commit"
    );
    graph.let_go("job0");
    graph.set_backing("one", None).expect("its own place");
    assert_eq!(graph.chain("one"), ["one"]);
    assert!(graph.set_backing("base", Some("two")).is_err());
    assert_eq!(
        refusal(graph.set_backing("one", Some("one"))),
        "Node 'one' would stand on itself"
    );
}

#[test]
fn access_of_a_node_changes_with_the_storage_that_came_with_it() {
    let mut graph = BlockGraph::new();
    graph
        .add(&door(), raw("disk", inline(null(Some("storage")))))
        .expect("add");
    let read_only = NodeOptions {
        read_only: true,
        ..OPTIONS
    };
    let changes = graph.prepare_reopen(&door(), "disk", read_only);
    let changes = changes.expect("nobody writes");
    assert_eq!(changes.len(), 2);
    for change in changes {
        change.commit();
    }
    let is_read_only = |name: &str| graph.node(name).expect("there").node().is_read_only();
    assert!(is_read_only("disk") && is_read_only("storage"));
    let direct = NodeOptions {
        cache: CacheSpec {
            direct: true,
            no_flush: false,
        },
        ..read_only
    };
    assert_eq!(
        refusal(graph.prepare_reopen(&door(), "disk", direct)),
        "Cannot change the option 'cache.direct'"
    );
    for change in graph
        .prepare_reopen(&door(), "disk", OPTIONS)
        .expect("back")
    {
        change.commit();
    }
    graph
        .attach("disk", "vda", Usage::disk(false, false))
        .expect("writable again");
    assert_eq!(
        refusal(graph.prepare_reopen(&door(), "disk", read_only)),
        "Block node is read-only: 'disk'"
    );
}

fn anew(graph: &mut BlockGraph, specs: &[NodeSpec]) -> Result<(), BlockError> {
    let prepared = graph.prepare_anew(&door(), specs)?;
    graph.make_anew(prepared).map(drop)
}

fn with_access(spec: NodeSpec, read_only: bool) -> NodeSpec {
    let options = NodeOptions {
        read_only,
        ..spec.options
    };
    NodeSpec { options, ..spec }
}

#[test]
fn nodes_are_made_anew_together_or_not_at_all() {
    let mut graph = BlockGraph::new();
    graph.add(&door(), null(Some("base"))).expect("add");
    graph.add(&door(), raw("a", on("base"))).expect("add");
    let both = |read_only| {
        let base = with_access(null(Some("base")), read_only);
        [base, with_access(raw("a", on("base")), read_only)]
    };
    let is_read_only = |graph: &BlockGraph, name: &str| {
        let view = graph.node(name).expect("there");
        view.node().is_read_only()
    };
    anew(&mut graph, &both(true)).expect("nobody writes");
    assert!(is_read_only(&graph, "base") && is_read_only(&graph, "a"));
    anew(&mut graph, &both(false)).expect("both at once");
    graph
        .attach("a", "vda", Usage::disk(false, false))
        .expect("writable");
    let [base, a] = both(true);
    assert_eq!(
        refusal(anew(&mut graph, &[a.clone(), base.clone()])),
        "Read-only block node 'a' cannot support read-write users"
    );
    assert_eq!(
        refusal(anew(&mut graph, &[raw("a", on("base")), base])),
        "Read-only block node 'base' cannot support read-write users"
    );
    assert!(!is_read_only(&graph, "base") && !is_read_only(&graph, "a"));
}

#[test]
fn node_made_anew_keeps_what_cannot_change_and_says_so() {
    let mut graph = BlockGraph::new();
    graph
        .add(&door(), raw("a", inline(null(Some("base")))))
        .expect("add");
    let cases = [
        (null(Some("a")), "Cannot change the option 'driver'"),
        (null(None), "node-name not specified"),
        (null(Some("b")), "Failed to find node with node-name='b'"),
        (raw("a", on("b")), "Cannot find device='' nor node-name='b'"),
        (
            raw("a", inline(null(Some("other")))),
            "Cannot change the option 'node-name'",
        ),
        (
            raw("a", on("a")),
            "Making 'a' a file child of 'a' would create a cycle",
        ),
    ];
    for (spec, text) in cases {
        assert_eq!(refusal(anew(&mut graph, &[spec])), text);
    }
    let mut longer = null(Some("base"));
    longer.driver = DriverSpec::NullCo(NullSpec {
        size: 2 << 20,
        read_zeroes: true,
    });
    assert_eq!(
        refusal(anew(&mut graph, &[raw("a", inline(longer))])),
        "Cannot change the option 'size'"
    );
}

#[test]
fn node_made_anew_stands_on_another_and_what_came_with_it_goes() {
    let mut graph = BlockGraph::new();
    graph
        .add(&door(), raw("a", inline(null(None))))
        .expect("add");
    graph.add(&door(), null(Some("next"))).expect("add");
    anew(&mut graph, &[raw("a", on("next"))]).expect("as long");
    assert_eq!(names(&graph), ["a", "next"]);
    let view = graph.node("a").expect("there");
    assert_eq!(view.children().collect::<Vec<_>>(), [("file", "next")]);
}

#[test]
fn who_finds_a_chain_busy_hears_where_a_job_works_before_what_it_relinks() {
    let mut graph = BlockGraph::new();
    for name in ["overlay", "top", "base"] {
        graph.add(&door(), null(Some(name))).expect("add");
    }
    let held = [
        ("overlay".to_owned(), Grip::Relink),
        ("top".to_owned(), Grip::Work),
    ];
    graph.hold(&held, "job0", "commit", &Gate::new());
    let names = |names: &[&str]| {
        names
            .iter()
            .map(|&name| name.to_owned())
            .collect::<Vec<_>>()
    };
    let busy =
        |node: &str| format!("Node '{node}' is busy: block device is in use by block job: commit");
    let both = graph.check_all_idle(&names(&["overlay", "top", "base"]), None);
    assert_eq!(refusal(both), busy("top"));
    let (overlay, top) = (names(&["overlay", "base"]), names(&["top"]));
    assert_eq!(
        refusal(graph.check_all_idle(&overlay, None)),
        busy("overlay")
    );
    graph
        .check_all_idle(&overlay, Some("job0"))
        .expect("only relinked");
    assert_eq!(
        refusal(graph.check_all_idle(&top, Some("job0"))),
        busy("top")
    );
    graph.check_all_idle(&names(&["base"]), None).expect("idle");
    graph.let_go("job0");
    graph
        .check_all_idle(&names(&["overlay", "top"]), None)
        .expect("idle again");
}

#[test]
fn storage_of_which_it_was_said_that_it_is_read_only_does_not_become_writable() {
    let mut graph = BlockGraph::new();
    let said = NodeSpec {
        keeps_access: true,
        active: None,
        force_share: false,
        ..with_access(null(Some("storage")), true)
    };
    let disk = with_access(raw("disk", inline(said)), true);
    graph.add(&door(), disk).expect("add");
    assert_eq!(
        refusal(graph.prepare_reopen(&door(), "disk", OPTIONS)),
        "Block node is read-only"
    );
    let is_read_only = |name: &str| graph.node(name).expect("there").node().is_read_only();
    assert!(is_read_only("disk") && is_read_only("storage"));
}
