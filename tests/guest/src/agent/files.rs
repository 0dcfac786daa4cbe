//! Files and mounts in the guest.
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};

use guest::boot;
use serde_json::{Value, json};

use super::Arguments;
use super::disk::until;

/// `device`, `kind` (a file system), `path`.
pub(super) fn mount(arguments: &Arguments<'_>) -> io::Result<Value> {
    let device = format!("/dev/{}", arguments.text("device")?);
    let path = arguments.text("path")?;
    boot::mount_at(arguments.text("kind")?, &device, path, "")?;
    Ok(Value::Null)
}

/// `tag`, `path`, `seconds`: mounts a share of files, once it is there.
pub(super) fn mount_share(arguments: &Arguments<'_>) -> io::Result<Value> {
    let (tag, path) = (arguments.text("tag")?, arguments.text("path")?);
    let mut failed = None;
    let mounted = until(arguments.number("seconds")?, || {
        boot::mount_at("virtiofs", tag, path, "")
            .map_err(|error| failed = Some(error))
            .ok()
    });
    match (mounted, failed) {
        (None, Some(error)) => Err(error),
        _ => Ok(Value::Null),
    }
}

/// `path`: everything is written back before the answer.
pub(super) fn unmount(arguments: &Arguments<'_>) -> io::Result<Value> {
    nix::mount::umount(arguments.text("path")?)?;
    Ok(Value::Null)
}

/// `path`, `text`: a file is on the disk (fsync) before the answer.
pub(super) fn write(arguments: &Arguments<'_>) -> io::Result<Value> {
    let mut file = File::create(arguments.text("path")?)?;
    file.write_all(arguments.text("text")?.as_bytes())?;
    match file.sync_all() {
        // A terminal, which has nothing to sync.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {}
        result => result?,
    }
    Ok(Value::Null)
}

/// `path`: the file as text.
pub(super) fn read(arguments: &Arguments<'_>) -> io::Result<Value> {
    let bytes = fs::read(arguments.text("path")?)?;
    Ok(json!(String::from_utf8_lossy(&bytes)))
}

/// A file of `/proc` as one trimmed line.
pub(super) fn read_proc(path: &str) -> io::Result<Value> {
    Ok(json!(fs::read_to_string(path)?.trim()))
}

/// `name` (of a virtio-serial port) and `text`.
pub(super) fn port_write(arguments: &Arguments<'_>) -> io::Result<Value> {
    let mut port = guest::port::open(arguments.text("name")?)?;
    port.write_all(arguments.text("text")?.as_bytes())?;
    Ok(Value::Null)
}

/// `name` and `count`: exactly that many bytes, as text.
pub(super) fn port_read(arguments: &Arguments<'_>) -> io::Result<Value> {
    let count = usize::try_from(arguments.number("count")?).map_err(io::Error::other)?;
    let mut bytes = vec![0; count.min(1 << 20)];
    guest::port::Patient(guest::port::open(arguments.text("name")?)?).read_exact(&mut bytes)?;
    Ok(json!(String::from_utf8_lossy(&bytes)))
}

/// Opens a block device for direct access, so that what is read comes from the device.
pub(super) fn open_direct(name: &str, write: bool) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    OpenOptions::new()
        .read(true)
        .write(write)
        .custom_flags(libc::O_DIRECT)
        .open(format!("/dev/{name}"))
}
