//! What tests need and nobody builds: Debian's stock kernels, fetched as packages into a cache
//! outside the repository, never installed.
//!
//! ```text
//!   $SESAME_CACHE or ~/.cache/sesame / kernels / cloud   / boot/vmlinuz-*, lib/modules/*
//!                                               / generic /  (the lab's own kernel)
//!                                               / newest  /  (of the unstable suite)
//!                                    / packages / ovmf    / usr/share/OVMF
//!                                               / systemd-boot-efi / usr/lib/systemd/boot/efi
//! ```
use std::collections::{BTreeMap, BTreeSet};
use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

/// One of Debian's kernel packages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flavour {
    /// `linux-image-cloud-amd64`: what test guests boot.
    Cloud,
    /// `linux-image-amd64`: what the lab machine boots when no special kernel was built.
    Generic,
    /// `linux-image-cloud-amd64` of the unstable suite: what test guests will boot.
    Newest,
}

impl Flavour {
    fn folder(self) -> &'static str {
        match self {
            Self::Cloud => "cloud",
            Self::Generic => "generic",
            Self::Newest => "newest",
        }
    }

    /// Meta packages, the preferred first: Debian 12 offers 6.12 beside its 6.1.
    fn packages(self) -> &'static [&'static str] {
        match self {
            Self::Cloud => &["linux-image-6.12-cloud-amd64", "linux-image-cloud-amd64"],
            Self::Generic => &["linux-image-6.12-amd64", "linux-image-amd64"],
            Self::Newest => &["linux-image-cloud-amd64"],
        }
    }
}

/// An unpacked kernel package.
#[derive(Clone, Debug)]
pub struct Kernel {
    root: PathBuf,
    /// The bzImage.
    pub image: PathBuf,
}

/// One module, unpacked, ready for `finit_module`.
#[derive(Clone, Debug)]
pub struct Module {
    /// File name without folder, such as `virtio_blk.ko`.
    pub name: String,
    /// The ELF object.
    pub bytes: Vec<u8>,
}

/// The cache folder: `$SESAME_CACHE`, else `sesame` in the user's cache.
pub fn cache() -> Result<PathBuf> {
    if let Some(folder) = env::var_os("SESAME_CACHE") {
        return Ok(folder.into());
    }
    if let Some(folder) = env::var_os("XDG_CACHE_HOME") {
        return Ok(Path::new(&folder).join("sesame"));
    }
    let home = env::var_os("HOME").context("no HOME and no SESAME_CACHE: where is the cache?")?;
    Ok(Path::new(&home).join(".cache/sesame"))
}

/// The kernel of that flavour, fetched on first use.
pub fn kernel(flavour: Flavour) -> Result<Kernel> {
    let root = cache()?.join("kernels").join(flavour.folder());
    if !root.exists() {
        fetch(flavour, &root)?;
    }
    let image = only_entry(&root.join("boot"), "vmlinuz")?;
    Ok(Kernel { root, image })
}

/// The distribution's UEFI firmware for virtual machines (EDK II), without system management mode.
#[derive(Clone, Debug)]
pub struct Ovmf {
    /// The code: read-only flash.
    pub code: PathBuf,
    /// An empty store of variables, to be copied.
    pub variables: PathBuf,
}

/// The firmware, fetched on first use.
pub fn ovmf() -> Result<Ovmf> {
    let folder = package("ovmf")?.join("usr/share/OVMF");
    Ok(Ovmf {
        code: folder.join("OVMF_CODE_4M.fd"),
        variables: folder.join("OVMF_VARS_4M.fd"),
    })
}

/// systemd's program that a kernel is put behind to be one for firmware, fetched on first use.
pub fn efi_stub() -> Result<PathBuf> {
    let folder = package("systemd-boot-efi")?.join("usr/lib/systemd/boot/efi");
    Ok(folder.join("linuxx64.efi.stub"))
}

/// The folder with a package's files.
fn package(name: &str) -> Result<PathBuf> {
    let parent = cache()?.join("packages");
    let root = parent.join(name);
    if !root.exists() {
        fs::create_dir_all(&parent)?;
        let work = tempfile::tempdir_in(parent)?;
        let archive = Archive::of_this_machine();
        unpack_packages(&archive, &[name.to_owned()], work.path(), &root)?;
    }
    Ok(root)
}

fn fetch(flavour: Flavour, root: &Path) -> Result<()> {
    let parent = root.parent().context("the cache has a parent")?;
    fs::create_dir_all(parent)?;
    let work = tempfile::tempdir_in(parent)?;
    let archive = match flavour {
        Flavour::Newest => Archive::unstable(work.path())?,
        Flavour::Cloud | Flavour::Generic => Archive::of_this_machine(),
    };
    let package = match archive.newest(flavour)? {
        Some(package) => package,
        None => {
            archive.update()?;
            let packages = || format!("apt knows none of {}", flavour.packages().join(", "));
            archive.newest(flavour)?.with_context(packages)?
        }
    };
    let packages = archive.with_parts(&package)?;
    unpack_packages(&archive, &packages, work.path(), root)
}

/// Downloads packages and unpacks them, together, as `root`.
fn unpack_packages(archive: &Archive, packages: &[String], work: &Path, root: &Path) -> Result<()> {
    let names = packages.join(", ");
    eprintln!("fetching {names} into {}", root.display());
    let folder = work.join("packages");
    fs::create_dir(&folder)?;
    // Lists older than the archive name files that are gone: refresh them once.
    if archive.download(packages, &folder).is_err() {
        archive.update()?;
        archive.download(packages, &folder)?;
    }
    let unpacked = work.join("unpacked");
    for package in fs::read_dir(&folder)? {
        let mut unpack = Command::new("dpkg-deb");
        run(unpack.arg("-x").arg(package?.path()).arg(&unpacked))?;
    }
    gather(&unpacked)?;
    match fs::rename(&unpacked, root) {
        // Somebody else was quicker; theirs is as good.
        Err(_) if root.exists() => Ok(()),
        other => other.with_context(|| format!("move {names} to {}", root.display())),
    }
}

/// Newer packages have their kernel beside its modules, below `/usr`: puts it where the others do.
fn gather(unpacked: &Path) -> Result<()> {
    let modules = unpacked.join("usr/lib/modules");
    if !modules.exists() {
        return Ok(());
    }
    let boot = unpacked.join("boot");
    fs::create_dir_all(&boot)?;
    let image = only_entry(&only_entry(&modules, "")?, "vmlinuz")?;
    fs::rename(image, boot.join("vmlinuz"))?;
    fs::rename(unpacked.join("usr/lib"), unpacked.join("lib"))?;
    Ok(())
}

/// Packages, as apt finds them.
struct Archive {
    /// Where apt is told of another suite than the machine's own.
    config: Option<PathBuf>,
}

impl Archive {
    fn of_this_machine() -> Self {
        Self { config: None }
    }

    /// The unstable suite, with lists of its own below `work`: the machine's apt is left as it is.
    fn unstable(work: &Path) -> Result<Self> {
        let work = work.join("apt");
        for folder in ["lists/partial", "archives/partial", "parts"] {
            fs::create_dir_all(work.join(folder))?;
        }
        let sources = work.join("sources.list");
        let source = "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] \
                      http://deb.debian.org/debian sid main\n";
        fs::write(&sources, source)?;
        let config = work.join("apt.conf");
        let place = work.display();
        let settings = format!(
            "Dir::Etc::sourcelist \"{place}/sources.list\";\n\
             Dir::Etc::sourceparts \"{place}/parts\";\n\
             Dir::State::lists \"{place}/lists\";\n\
             Dir::Cache \"{place}\";\n\
             Acquire::Languages \"none\";\n\
             APT::Sandbox::User \"\";\n"
        );
        fs::write(&config, settings)?;
        let archive = Self {
            config: Some(config),
        };
        archive.update()?;
        Ok(archive)
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        if let Some(config) = &self.config {
            command.env("APT_CONFIG", config);
        }
        command
    }

    fn update(&self) -> Result<()> {
        match self.config {
            Some(_) => run(self.command("apt-get").args(["update", "-qq"])),
            None => run_as_root(&["apt-get", "update", "-qq"]),
        }
    }

    /// The real package behind the newest meta package that apt knows.
    fn newest(&self, flavour: Flavour) -> Result<Option<String>> {
        for meta in flavour.packages() {
            let needed = self.needs(meta)?;
            let mut images = needed
                .into_iter()
                .filter(|name| name.starts_with("linux-image-"));
            if let Some(package) = images.next() {
                return Ok(Some(package));
            }
        }
        Ok(None)
    }

    /// A kernel's package, and the packages of the same kernel that it may be split into.
    fn with_parts(&self, package: &str) -> Result<Vec<String>> {
        let version = package.trim_start_matches("linux-image-");
        let parts = self.needs(package)?;
        let parts = parts.into_iter().filter(|name| name.ends_with(version));
        Ok([package.to_owned()].into_iter().chain(parts).collect())
    }

    fn needs(&self, package: &str) -> Result<Vec<String>> {
        let mut command = self.command("apt-cache");
        let output = command
            .args(["depends", "--important", package])
            .output()
            .context("run apt-cache (kernels come as Debian packages)")?;
        let text = String::from_utf8_lossy(&output.stdout);
        let names = text
            .lines()
            .filter_map(|line| line.trim().strip_prefix("Depends: "));
        Ok(names.map(str::to_owned).collect())
    }

    fn download(&self, packages: &[String], folder: &Path) -> Result<()> {
        let mut command = self.command("apt-get");
        run(command
            .args(["download", "-qq"])
            .args(packages)
            .current_dir(folder))
    }
}

/// Runs a command that needs root: as it is for root, else by sudo without a question.
pub fn run_as_root(command: &[&str]) -> Result<()> {
    let root = nix::unistd::geteuid().is_root();
    let (program, arguments) = match (root, command.split_first()) {
        (true, Some((program, arguments))) => (*program, arguments.to_vec()),
        (false, Some(_)) => ("sudo", [&["-n"], command].concat()),
        (_, None) => bail!("no command"),
    };
    run(Command::new(program)
        .args(arguments)
        .env("DEBIAN_FRONTEND", "noninteractive"))
    .with_context(|| format!("needs root: {}", command.join(" ")))
}

fn run(command: &mut Command) -> Result<()> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("run {}", command.get_program().display()))?;
    ensure!(
        output.status.success(),
        "{} failed ({}): {}",
        command.get_program().display(),
        output.status,
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(())
}

fn only_entry(folder: &Path, prefix: &str) -> Result<PathBuf> {
    fs::read_dir(folder)
        .with_context(|| format!("read {}", folder.display()))?
        .flatten()
        .map(|entry| entry.path())
        .find(|path| {
            path.file_name()
                .is_some_and(|name| name.to_string_lossy().starts_with(prefix))
        })
        .with_context(|| format!("no {prefix}* in {}", folder.display()))
}

impl Kernel {
    /// A kernel of our own making, with everything built in.
    pub fn monolithic(image: PathBuf) -> Self {
        Self {
            root: PathBuf::new(),
            image,
        }
    }

    /// The named modules and what they depend on, dependencies first. Names that the kernel has
    /// built in, or does not know, are left out.
    pub fn modules(&self, names: &[&str]) -> Result<Vec<Module>> {
        let mut index = BTreeMap::new();
        let tree = self.root.join("lib/modules");
        if tree.exists() {
            walk(&tree, &mut index)?;
        }
        let mut order = Vec::new();
        let mut seen = BTreeSet::new();
        for name in names {
            add_module(&index, &canonical(name), &mut seen, &mut order)?;
        }
        Ok(order)
    }
}

fn add_module(
    index: &BTreeMap<String, PathBuf>,
    name: &str,
    seen: &mut BTreeSet<String>,
    order: &mut Vec<Module>,
) -> Result<()> {
    let Some(path) = index.get(name) else {
        return Ok(());
    };
    if !seen.insert(name.to_owned()) {
        return Ok(());
    }
    let bytes = unpack(path)?;
    for needed in depends(&bytes) {
        add_module(index, &canonical(&needed), seen, order)?;
    }
    let name = format!("{name}.ko");
    order.push(Module { name, bytes });
    Ok(())
}

fn canonical(name: &str) -> String {
    name.replace('-', "_")
}

fn walk(folder: &Path, index: &mut BTreeMap<String, PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            walk(&path, index)?;
        } else if let Some((name, _)) = path
            .file_name()
            .and_then(|name| name.to_str()?.split_once(".ko"))
        {
            index.insert(canonical(name), path.clone());
        }
    }
    Ok(())
}

fn unpack(path: &Path) -> Result<Vec<u8>> {
    let program = match path.extension().and_then(|extension| extension.to_str()) {
        Some("xz") => "xz",
        Some("zst") => "zstd",
        _ => return Ok(fs::read(path)?),
    };
    let output = Command::new(program)
        .arg("-dc")
        .arg(path)
        .output()
        .with_context(|| format!("run {program}"))?;
    ensure!(
        output.status.success(),
        "{program} cannot unpack {}",
        path.display()
    );
    Ok(output.stdout)
}

/// The `depends=` entry of the module's `.modinfo`, the section of zero-separated `key=value`s.
fn depends(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(start) = module.windows(KEY.len()).position(|window| window == KEY) else {
        return Vec::new();
    };
    let rest = &module[start + KEY.len()..];
    let end = rest.iter().position(|&byte| byte == 0).unwrap_or(0);
    String::from_utf8_lossy(&rest[..end])
        .split(',')
        .filter(|name| !name.is_empty())
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn depends_are_read_from_the_modinfo_section() {
        let module = b"\x7fELF..\0license=GPL\0depends=ccp,kvm\0name=kvm_amd\0";
        assert_eq!(depends(module), ["ccp", "kvm"]);
        assert!(depends(b"\0depends=\0").is_empty());
    }
}
