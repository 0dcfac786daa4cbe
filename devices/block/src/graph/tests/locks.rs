//! Other processes with the same image: QEMU's own tools.

use std::io::{BufRead, BufReader, Write};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};

use fdset::{FdsetId, Handover, Origin};
use tempfile::NamedTempFile;

use super::*;
use crate::permission::Permissions;
use crate::spec::Locking;

const DISK: Usage = Usage {
    uses: Permissions::CONSISTENT_READ.union(Permissions::WRITE),
    shares: Permissions::CONSISTENT_READ.union(Permissions::WRITE_UNCHANGED),
};

/// A format's image: QEMU reads raw ones whoever writes them. Here only its bytes matter.
fn image() -> NamedTempFile {
    let image = NamedTempFile::new().expect("image");
    let mut tool = Command::new("qemu-img");
    tool.args(["create", "-q", "-f", "qcow2"]).arg(image.path());
    assert!(tool.arg("1M").status().expect("qemu-img").success());
    image
}

fn disk(name: &str, filename: &str, locking: Locking, options: NodeOptions) -> NodeSpec {
    let file = NodeSpec {
        keeps_access: false,
        active: None,
        force_share: false,
        name: None,
        options,
        driver: DriverSpec::File(FileSpec {
            filename: filename.to_owned(),
            role: Role::Image,
            locking,
        }),
    };
    NodeSpec {
        keeps_access: false,
        active: None,
        force_share: false,
        options,
        ..raw(name, inline(file))
    }
}

fn path(image: &NamedTempFile) -> &str {
    image.path().to_str().expect("plain path")
}

/// What a tool of QEMU's complains of; empty if it does its work.
fn complaint(image: &NamedTempFile, program: &str, arguments: &[&str]) -> String {
    let mut tool = Command::new(program);
    let output = tool.args(arguments).arg(image.path()).output();
    let output = output.expect("QEMU's tools are installed");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn read_by_qemu(image: &NamedTempFile) -> String {
    complaint(image, "qemu-img", &["info", "-f", "qcow2"])
}

fn written_by_qemu(image: &NamedTempFile) -> String {
    complaint(image, "qemu-io", &["-f", "qcow2", "-c", "write -q 0 512"])
}

/// A `qemu-io` that has the image open for writing until it is killed.
fn holder(image: &NamedTempFile) -> Child {
    let mut tool = Command::new("qemu-io");
    tool.args(["-f", "qcow2"]).arg(image.path());
    tool.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = tool.spawn().expect("qemu-io");
    writeln!(child.stdin.as_mut().expect("piped"), "read 0 512").expect("it listens");
    let mut line = String::new();
    let mut answers = BufReader::new(child.stdout.as_mut().expect("piped"));
    answers.read_line(&mut line).expect("it answers");
    child
}

#[test]
fn image_of_a_disk_is_refused_by_qemus_tools_until_the_disk_is_gone() {
    let image = image();
    let mut graph = BlockGraph::new();
    let spec = disk("disk", path(&image), Locking::On, OPTIONS);
    graph.add(&door(), spec).expect("node");
    assert_eq!(written_by_qemu(&image), "", "nobody uses the node");
    graph.attach("disk", "vda", DISK).expect("a disk");
    let refused = written_by_qemu(&image);
    assert!(
        refused.contains("Failed to get \"write\" lock"),
        "{refused}"
    );
    let refused = read_by_qemu(&image);
    assert!(
        refused.contains("Failed to get shared \"write\" lock"),
        "{refused}"
    );
    graph.detach("disk", "vda");
    assert_eq!(written_by_qemu(&image), "");
    let reader = Usage {
        uses: Permissions::CONSISTENT_READ,
        ..DISK
    };
    graph.attach("disk", "vdb", reader).expect("a reader");
    assert_eq!(read_by_qemu(&image), "", "both only read");
    assert!(written_by_qemu(&image).contains("lock"));
}

#[test]
fn image_that_another_process_writes_is_refused_until_that_is_killed() {
    let image = image();
    let mut other = holder(&image);
    let mut graph = BlockGraph::new();
    let spec = disk("disk", path(&image), Locking::Auto, OPTIONS);
    graph.add(&door(), spec).expect("node");
    let error = graph.attach("disk", "vda", DISK).expect_err("in use");
    assert_eq!(
        error.to_string(),
        format!(
            "Failed to get \"write\" lock\nIs another process using the image [{}]?",
            path(&image)
        )
    );
    let unlocked = disk("unlocked", path(&image), Locking::Off, OPTIONS);
    graph.add(&door(), unlocked).expect("node");
    graph.attach("unlocked", "vdb", DISK).expect("nobody asks");
    other.kill().expect("SIGKILL");
    other.wait().expect("an end");
    graph.attach("disk", "vda", DISK).expect("free again");
}

#[test]
fn locks_of_an_image_in_a_set_follow_its_access_and_end_before_the_fd_does() {
    let image = image();
    let registry = Arc::new(FdRegistry::new());
    let set = FdsetId::new(1).expect("a number");
    let reading = image.reopen().expect("an fd");
    #[expect(clippy::disallowed_methods, reason = "the test plays the manager")]
    let read_only = File::open(image.path()).expect("an fd");
    for fd in [OwnedFd::from(read_only), OwnedFd::from(reading)] {
        let fd = Handover::new(fd, Origin::CommandLine);
        registry.add(fd, Some(set), None);
    }
    let door = Door::new(Arc::clone(&registry), Scope::Process);
    let mut graph = BlockGraph::new();
    let reader = NodeOptions {
        read_only: true,
        ..OPTIONS
    };
    let spec = disk("disk", "/dev/fdset/1", Locking::Auto, reader);
    graph.add(&door, spec).expect("node");
    let shared = Usage {
        uses: Permissions::CONSISTENT_READ,
        ..DISK
    };
    graph.attach("disk", "vda", shared).expect("a reader");
    assert_eq!(read_by_qemu(&image), "");
    for read_only in [false, true] {
        let to = NodeOptions {
            read_only,
            ..OPTIONS
        };
        for change in graph
            .prepare_reopen(&door, "disk", to)
            .expect("the same file")
        {
            change.commit();
        }
        graph.settle_locks();
        assert_eq!(read_by_qemu(&image), "");
        assert!(written_by_qemu(&image).contains("lock"), "still a reader");
    }
    graph.detach("disk", "vda");
    graph.remove("disk").expect("unused");
    assert_eq!(written_by_qemu(&image), "", "the set still has its fds");
}

#[test]
fn file_that_stays_behind_when_its_image_goes_is_not_locked_any_more() {
    let image = image();
    let mut graph = BlockGraph::new();
    let id = "t".to_owned();
    graph.use_thread(IoThread::start(IoThreadSpec { id }).expect("a thread"));
    let file = NodeSpec {
        name: Some("file".to_owned()),
        driver: DriverSpec::File(FileSpec {
            filename: path(&image).to_owned(),
            role: Role::Image,
            locking: Locking::On,
        }),
        ..null(None)
    };
    graph.add(&door(), file).expect("node");
    let over = activity::image("disk", on("file"), crate::spec::BackingSpec::Nothing);
    graph.add(&door(), over).expect("node");
    assert!(written_by_qemu(&image).contains("lock"), "it may write");
    graph.remove("disk").expect("unused");
    assert_eq!(
        written_by_qemu(&image),
        "",
        "the file's node is still there"
    );
}

#[test]
fn one_file_that_is_handed_in_for_two_disks_is_refused_though_its_locks_are_one() {
    let image = image();
    let registry = Arc::new(FdRegistry::new());
    let file = image.reopen().expect("an fd");
    for set in [1, 2] {
        // Copies: what is locked by one is locked by the other.
        let fd = OwnedFd::from(file.try_clone().expect("a copy"));
        let fd = Handover::new(fd, Origin::CommandLine);
        registry.add(fd, Some(FdsetId::new(set).expect("a number")), None);
    }
    let door = Door::new(Arc::clone(&registry), Scope::Process);
    let mut graph = BlockGraph::new();
    for (name, set, locking) in [
        ("disk", "/dev/fdset/1", Locking::Auto),
        ("other", "/dev/fdset/2", Locking::Auto),
        ("unlocked", "/dev/fdset/2", Locking::Off),
    ] {
        let spec = disk(name, set, locking, OPTIONS);
        graph.add(&door, spec).expect("nobody uses it yet");
    }
    graph.attach("disk", "vda", DISK).expect("a disk");
    let error = graph
        .attach("other", "vdb", DISK)
        .expect_err("the same file");
    let text = error.to_string();
    assert!(text.starts_with("Failed to get \"write\" lock"), "{text}");
    assert!(text.contains("have the same file [/dev/fdset/2]"), "{text}");
    graph.attach("unlocked", "vdc", DISK).expect("nobody asks");
    graph.detach("disk", "vda");
    graph.attach("other", "vdb", DISK).expect("alone");
}

#[test]
fn reader_that_shares_by_force_reads_what_another_process_writes() {
    let image = image();
    let mut other = holder(&image);
    let mut graph = BlockGraph::new();
    let reading = NodeOptions {
        read_only: true,
        ..OPTIONS
    };
    let reader = Usage {
        uses: Permissions::CONSISTENT_READ,
        ..DISK
    };
    for (name, force_share) in [("careful", false), ("careless", true)] {
        let spec = NodeSpec {
            force_share,
            ..disk(name, path(&image), Locking::On, reading)
        };
        graph.add(&door(), spec).expect("node");
    }
    let error = graph.attach("careful", "vda", reader).expect_err("in use");
    assert!(
        error.to_string().contains("shared \"write\" lock"),
        "{error}"
    );
    graph.attach("careless", "vdb", reader).expect("it said so");
    other.kill().expect("SIGKILL");
    other.wait().expect("an end");
    assert_eq!(written_by_qemu(&image), "", "and the other way round");
}
