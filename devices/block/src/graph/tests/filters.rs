//! Filters in chains, and those that jobs put there.

use super::change::overlay;
use super::*;

fn throttle(graph: &mut BlockGraph, name: &str, below: &str) {
    let group = "g".to_owned();
    if graph.throttle_group("g").is_err() {
        let added = graph.add_throttle_group(group.clone(), ThrottleLimits::default());
        added.expect("a new name");
    }
    let spec = NodeSpec {
        driver: DriverSpec::Throttle(ThrottleSpec {
            group,
            file: on(below),
        }),
        ..null(Some(name))
    };
    graph.add(&door(), spec).expect("add");
}

/// `high` (a filter) over `top` over `low` (a filter) over `base`.
fn chain() -> BlockGraph {
    let mut graph = BlockGraph::new();
    overlay(&mut graph, "base", None);
    throttle(&mut graph, "low", "base");
    overlay(&mut graph, "top", Some("low"));
    throttle(&mut graph, "high", "top");
    graph
}

fn hold(graph: &mut BlockGraph, names: &[&str]) {
    let held = names.iter().map(|&name| (name.to_owned(), Grip::Work));
    let held: Vec<_> = held.collect();
    graph.hold(&held, "job0", "commit", &Gate::new());
}

#[test]
fn chains_go_through_filters_and_images_are_found_in_them() {
    let graph = chain();
    let chain = graph.chain("high");
    assert_eq!(chain, ["high", "top", "low", "base"]);
    assert_eq!(graph.below_filters("high"), "top");
    assert_eq!(graph.below_filters("top"), "top");
    assert_eq!(graph.find_behind(&chain, "base"), Some(3));
    assert_eq!(graph.find_behind(&chain, "top"), None, "not behind itself");
    assert_eq!(graph.overlays_of("base"), ["top"]);
    assert!(graph.overlays_of("top").is_empty());
}

#[test]
fn filter_of_a_job_stands_between_a_node_and_its_users_until_it_is_taken_out() {
    let mut graph = chain();
    let root = graph.attach("high", "vda", Usage::disk(false, false));
    let root = root.expect("free");
    let taken = graph.insert_filter("top", JobFilter::Commit, "base", Vec::new());
    assert_eq!(refusal(taken), "Duplicate nodes with node-name='top'");
    let insert = |graph: &mut BlockGraph, name, filter, below| {
        let inserted = graph.insert_filter(name, filter, below, Vec::new());
        inserted.expect("a new name");
    };
    insert(&mut graph, "c", JobFilter::Commit, "base");
    insert(&mut graph, "m", JobFilter::ActiveCommit, "high");
    hold(&mut graph, &["c", "m"]);
    let chain = graph.chain("m");
    assert_eq!(chain, ["m", "high", "top", "low", "c", "base"]);
    assert_eq!(root.node().name(), "m");
    assert_eq!(root.node().driver(), "mirror_top");
    assert!(graph.is_of_a_commit("c") && !graph.is_of_a_commit("low"));
    assert_eq!(graph.overlays_of("c"), ["top"]);
    for filter in ["c", "m"] {
        graph.remove_filter(filter).expect("there");
    }
    graph.let_go("job0");
    assert_eq!(graph.chain("high"), ["high", "top", "low", "base"]);
    assert_eq!(root.node().name(), "high");
    assert!(graph.node("c").is_err() && graph.node("m").is_err());
}

#[test]
fn what_a_job_held_and_nobody_has_goes_when_it_lets_go() {
    let mut graph = chain();
    let inserted = graph.insert_filter("c", JobFilter::Commit, "top", Vec::new());
    inserted.expect("a new name");
    hold(&mut graph, &["c", "top"]);
    graph.replace_node("c", "base").expect("below it");
    assert!(graph.node("c").is_ok(), "the job holds it");
    graph.let_go("job0");
    assert!(graph.node("c").is_err());
    assert!(graph.node("top").is_ok(), "a command's");
    assert_eq!(graph.chain("high"), ["high", "base"]);
}

#[test]
fn throttle_over_a_read_only_node_takes_no_writer_until_that_is_writable() {
    let mut graph = BlockGraph::new();
    let read_only = NodeOptions {
        read_only: true,
        ..OPTIONS
    };
    let spec = NodeSpec {
        options: read_only,
        ..null(Some("base"))
    };
    graph.add(&door(), spec).expect("add");
    throttle(&mut graph, "slow", "base");
    let writer = Usage::disk(false, false);
    assert_eq!(
        refusal(graph.attach("slow", "vda", writer)),
        "Block node is read-only: 'base'"
    );
    let changes = graph.prepare_reopen(&door(), "base", OPTIONS);
    let changes = changes.expect("nobody minds");
    changes.into_iter().for_each(crate::Reopening::commit);
    graph.attach("slow", "vda", writer).expect("writable");
}

#[test]
fn what_a_plain_name_would_not_bring_back_is_called_by_its_options() {
    let mut graph = chain();
    graph.add(&door(), null(Some("null"))).expect("add");
    let window = DriverSpec::Raw(RawSpec {
        file: on("null"),
        offset: 512,
        size: None,
    });
    let window = NodeSpec {
        driver: window,
        ..null(Some("window"))
    };
    graph.add(&door(), window).expect("add");
    graph.add(&door(), raw("all", on("null"))).expect("add");
    let inserted = graph.insert_filter("c", JobFilter::Commit, "null", Vec::new());
    inserted.expect("a new name");
    let name = |node: &str| graph.node(node).expect("there").full_name();
    assert_eq!(name("c"), "null-co://");
    assert_eq!(
        name("window"),
        r#"json:{"driver": "raw", "file": {"backing": {"driver": "null-co"}, "driver": "commit_top"}, "offset": 512}"#
    );
    assert_eq!(
        name("all"),
        r#"json:{"driver": "raw", "file": {"backing": {"driver": "null-co"}, "driver": "commit_top"}}"#
    );
    assert_eq!(
        name("low"),
        r#"json:{"driver": "throttle", "file": {"driver": "toy"}, "throttle-group": "g"}"#
    );
}
