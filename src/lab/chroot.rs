//! What chroot isolates, what it does not, and the way out of it.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use super::session::Session;
use super::side::{self, Given, RUN_WITHIN, Readings, Side};
use super::stage::Stage;
use super::{Demonstration, LabError};

pub(super) const DEMONSTRATION: Demonstration = Demonstration {
    name: "chroot",
    title: "another root directory: what that isolates, what not, and the way out",
    seconds: 30,
    run,
};

/// What can be told from inside without /proc.
const SCRIPT: &str = r#"
cd /; set -- *; echo "root=$*"
[ -e "$outside" ] && echo file=there || echo file=hidden
kill -0 $lab 2>/dev/null && echo signal=allowed || echo signal=impossible
echo "hostname=$(hostname)"
$ip -o link | { count=0; while read -r line; do count=$((count + 1)); done; echo "links=$count"; }
"#;

/// How often the way up is taken: deeper than any directory that anybody makes.
const UP: usize = 1024;

fn run(stage: &Stage) -> Result<(), LabError> {
    let root = stage.small_root()?;
    fs::create_dir_all(root.join("inner")).map_err(LabError::host("make a directory in the root"))?;
    let marker = stage.scratch().join("outside");
    fs::write(&marker, "").map_err(LabError::host("write a file outside of the root"))?;
    // Without /proc a shell that is all its programs finds none of them but by their paths.
    link(&root, "ip")?;
    let outside = marker.display();
    let script = |ip| format!("outside='{outside}'\nlab={}\nip={ip}\n{SCRIPT}", std::process::id());

    stage.comment(
        "The same script on the host, after chroot(2) into a small root file system, and in a container with that root. \
         It looks at /, at a file of the lab's, at the lab's process, at host name and network interfaces.",
    )?;
    let host = side::run_well(stage, Side::Host, &Given::default(), &script("ip"))?;
    let jail = unless_refused(stage, jailed(stage, &root, &script("/bin/ip")))?;
    let given = Given { root: Some(&root), ..Given::default() };
    let container = stage
        .unless_absent("the container", side::run_well(stage, Side::Container, &given, &script("ip")))?;
    let host = Readings::parse(host.stdout.lines());
    let jail = jail.map(|ran| Readings::parse(ran.stdout.lines()));
    let container = container.map(|ran| Readings::parse(ran.stdout.lines()));

    let keys = [
        ("root", "files in /"),
        ("file", "the lab's file"),
        ("signal", "signal to the lab"),
        ("hostname", "host name"),
        ("links", "interfaces"),
    ];
    let cell = |of: &Option<Readings>, key| {
        of.as_ref().and_then(|said| said.get(key)).unwrap_or("not shown").to_owned()
    };
    let host = Some(host);
    let mut rows = vec![["", "host", "chroot", "container"].map(str::to_owned).to_vec()];
    for (key, title) in keys {
        rows.push(vec![title.into(), shortened(&cell(&host, key)), cell(&jail, key), cell(&container, key)]);
    }
    stage.table(&rows)?;
    if jail.is_some() {
        let same = |key| cell(&host, key) == cell(&jail, key);
        stage.conclude(
            !same("root") && cell(&jail, "file") == "hidden",
            "chroot changes where paths begin: files outside cannot be named",
        )?;
        stage.conclude(
            same("signal") && same("hostname") && same("links"),
            "all else is the host's: processes can be signalled, host name and network are the same",
        )?;
    }
    if container.is_some() {
        stage.conclude(
            cell(&container, "signal") == "impossible"
                && cell(&container, "hostname") != cell(&host, "hostname"),
            "the container has namespaces for these besides",
        )?;
    }
    escape(stage, &root)
}

/// A program of busybox in the root.
fn link(root: &Path, name: &str) -> Result<(), LabError> {
    match std::os::unix::fs::symlink("busybox", root.join("bin").join(name)) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
    .map_err(LabError::host("make a link in the root"))
}

/// The rest can be shown without.
fn unless_refused<T>(stage: &Stage, result: Result<T, LabError>) -> Result<Option<T>, LabError> {
    stage.unless_absent("chroot (it takes root, or user namespaces that anybody may make)", result)
}

/// In narrow tables the host's root would be all there is.
fn shortened(text: &str) -> String {
    let words: Vec<&str> = text.split(' ').collect();
    match words.get(..6) {
        Some(first) if words.len() > 7 => format!("{} ... ({} in all)", first.join(" "), words.len()),
        _ => text.to_owned(),
    }
}

/// Runs a script with this directory as its root.
fn jailed(stage: &Stage, root: &Path, script: &str) -> Result<super::session::Ran, LabError> {
    let root = path(root)?;
    let mut command = Command::new("/bin/busybox");
    command.args(["sh", "-c", script]);
    let enter = move || {
        become_able()?;
        // SAFETY: the paths end in a zero.
        check(unsafe { libc::chroot(root.as_ptr()) })?;
        // SAFETY: as above.
        check(unsafe { libc::chdir(c"/".as_ptr()) })
    };
    // SAFETY: between fork and exec it makes system calls only.
    unsafe { command.pre_exec(enter) };
    Session::start(stage, "the process after chroot", &mut command, RUN_WITHIN)?.finish()
}

fn escape(stage: &Stage, root: &Path) -> Result<(), LabError> {
    stage.heading("The way out")?;
    stage.comment(
        "A process that may call chroot can leave: it opens its root directory, calls chroot into a directory below, and is \
         then outside of its new root. From the open directory it goes up with \"..\" until it is at the host's root. \
         Done here by a process of the lab's own, which then only looks at the number of its root directory.",
    )?;
    let inode = |path: &Path| {
        fs::metadata(path).map(|file| file.ino()).map_err(LabError::host("look at a directory"))
    };
    let (host, inside) = (inode(Path::new("/"))?, inode(root)?);
    let program = stage.busybox()?;
    let busybox = path(&program)?;
    let jail = path(root)?;
    let mut command = Command::new(program);
    command.args(["stat", "-c", "%i", "/"]);
    let leave = move || {
        become_able()?;
        // SAFETY: all are paths that end in a zero, or numbers; the last one is only looked at.
        unsafe {
            check(libc::chroot(jail.as_ptr()))?;
            check(libc::chdir(c"/".as_ptr()))?;
            // In jail now: the host's files cannot be named.
            if libc::access(busybox.as_ptr(), libc::F_OK) == 0 {
                return Err(io::Error::from_raw_os_error(libc::EEXIST));
            }
            let fd = libc::open(c"/".as_ptr(), libc::O_RDONLY | libc::O_DIRECTORY | libc::O_CLOEXEC);
            check(fd)?;
            check(libc::chroot(c"inner".as_ptr()))?;
            check(libc::fchdir(fd))?;
            for _ in 0..UP {
                check(libc::chdir(c"..".as_ptr()))?;
            }
            check(libc::chroot(c".".as_ptr()))
        }
    };
    // SAFETY: between fork and exec it makes system calls only.
    unsafe { command.pre_exec(leave) };
    let ran =
        Session::start(stage, "the process that leaves", &mut command, RUN_WITHIN).and_then(Session::finish);
    let Some(ran) = unless_refused(stage, ran)? else { return Ok(()) };
    let after = ran.stdout.trim().to_owned();
    stage.fact(
        "root directory",
        &format!("host's number {host}, of the chroot {inside}, after the way out {after}"),
    )?;
    stage.conclude(
        after == host.to_string(),
        "the process has the host's root again: chroot keeps nobody in who may call it",
    )?;
    let given = Given { root: Some(root), ..Given::default() };
    let up = side::run(stage, Side::Container, &given, "cd /; cd ../../../..; set -- *; echo \"files $*\"");
    if let Some(up) = stage.unless_absent("the container", up)? {
        stage.fact("container", &format!("four times above its root: {}", up.stdout))?;
        stage.comment(
            "A container's root is a mount, put in the place of the old one by pivot_root(2) in a mount namespace of its \
             own; then the old one is unmounted. There is nothing above it to go to.",
        )?;
    }
    Ok(())
}

/// A user who is not root may call chroot in a user namespace of one's own.
fn become_able() -> io::Result<()> {
    // SAFETY: asks for a number.
    if unsafe { libc::geteuid() } == 0 {
        return Ok(());
    }
    // SAFETY: makes a namespace for this process alone.
    check(unsafe { libc::unshare(libc::CLONE_NEWUSER) })
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn path(path: &Path) -> Result<CString, LabError> {
    CString::new(path.as_os_str().as_bytes()).map_err(|error| LabError::host("use a path")(error.into()))
}
