//! Namespaces, one more at a time: what each costs, and what the process then sees otherwise.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::Instant;

use super::session::Session;
use super::side::{Given, RUN_WITHIN, Readings, Side, run_well};
use super::stage::Stage;
use super::{Demonstration, LabError};

pub(super) const DEMONSTRATION: Demonstration = Demonstration {
    name: "namespaces",
    title: "one namespace after the other: time, and what the process sees otherwise",
    seconds: 30,
    run,
};

/// How often each creation is timed; the median counts.
const ROUNDS: usize = 21;

/// A kind of namespace.
struct Kind {
    name: &'static str,
    flag: libc::c_int,
    /// What it is about.
    about: &'static str,
    /// Which reading it changes.
    key: &'static str,
}

const USER: Kind = Kind { name: "user", flag: libc::CLONE_NEWUSER, about: "users", key: "uid_map" };

/// The others, in the order in which they are added.
const KINDS: [Kind; 6] = [
    Kind { name: "uts", flag: libc::CLONE_NEWUTS, about: "host name", key: "hostname" },
    Kind { name: "ipc", flag: libc::CLONE_NEWIPC, about: "shared memory", key: "segments" },
    Kind { name: "mnt", flag: libc::CLONE_NEWNS, about: "a new mount", key: "mounted" },
    Kind { name: "net", flag: libc::CLONE_NEWNET, about: "interfaces", key: "links" },
    Kind { name: "cgroup", flag: libc::CLONE_NEWCGROUP, about: "own cgroup", key: "cgroup" },
    Kind { name: "pid", flag: libc::CLONE_NEWPID, about: "process ids", key: "pid" },
];

/// Run by a child of the process that has made the namespaces: only children get the new process ids. What it changes, it
/// changes only where that is its own.
const SCRIPT: &str = r#"
case $has in *uts*) hostname lab-namespace;; esac
echo "hostname=$(hostname)"
echo "segments=$(($(wc -l </proc/sysvipc/shm) - 1))"
case $has in *mnt*) mount --make-rprivate / && mount -t tmpfs lab $dir && echo x >$dir/mounted;; esac
[ -e $dir/mounted ] && echo mounted=yes || echo mounted=no
echo "links=$(ip -o link | wc -l), $(ip -o link | grep -c '[<,]UP[,>]') up"
echo "cgroup=$(cut -d: -f2- /proc/$pid/cgroup | tr '\n' ' ')"
echo "pid=$$"
echo "uid_map=$(tr -s ' ' </proc/self/uid_map)"
"#;

fn run(stage: &Stage) -> Result<(), LabError> {
    let root = nix::unistd::geteuid().is_root();
    let order: Vec<&Kind> = if root {
        KINDS.iter().chain([&USER]).collect()
    } else {
        [&USER].into_iter().chain(&KINDS).collect()
    };
    stage.comment(
        "A namespace is another set of names for one kind of thing in the same kernel. The lab makes them by clone3(2) and \
         unshare(2), one more each time, and asks the same questions. Times are medians of a process created with all \
         namespaces so far, ended and waited for, in microseconds (us).",
    )?;
    if !root {
        stage.comment(
            "You are not root: a user namespace comes first, in which you are root and may make the others.",
        )?;
    }
    let segment = Segment::new();
    let dir = stage.scratch().join("mounted");
    fs::create_dir_all(&dir).map_err(LabError::host("make a directory to mount on"))?;
    let before = read(stage, 0, "", &dir.display().to_string())?;
    let mut last = before.clone();
    let mut rows = vec![["added", "us", "before", "after"].map(str::to_owned).to_vec()];
    rows.push(vec!["(none)".into(), format!("{:.0}", time(0)?), String::new(), String::new()]);
    let (mut flags, mut names, mut unseen) = (0, String::new(), Vec::new());
    for kind in &order {
        flags |= kind.flag;
        names += kind.name;
        let reading =
            time(flags).and_then(|us| Ok((us, read(stage, flags, &names, &dir.display().to_string())?)));
        let Some((us, now)) = stage.unless_absent(&format!("the {} namespace", kind.name), reading)? else {
            flags &= !kind.flag;
            continue;
        };
        let value = |of: &Readings| shortened(of.get(kind.key).unwrap_or("none"));
        if now.get(kind.key) == last.get(kind.key) {
            unseen.push(kind.name);
        }
        rows.push(vec![
            format!("{} ({})", kind.name, kind.about),
            format!("{us:.0}"),
            value(&last),
            value(&now),
        ]);
        last = now;
    }
    stage.table(&rows)?;
    let after = read(stage, 0, "", &dir.display().to_string())?;
    drop(segment);
    // The process id of the script is another each time.
    let host = |of: &Readings| ["hostname", "mounted", "links"].map(|key| of.get(key).map(str::to_owned));
    if unseen.is_empty() {
        stage.conclude(true, "each namespace changed what the process sees of one kind of thing")?;
    } else {
        let names = unseen.join(", ");
        stage.absent(
            &format!("a difference ({names})"),
            "the process has the same of it as before, on this host",
        )?;
    }
    stage.conclude(host(&before) == host(&after), "the host's own names are what they were before")?;
    stage.comment(
        "All these processes ran on one kernel, which looked names up in other tables. `tandem run --as container` makes all of \
         them at once.",
    )
}

/// The lists of cgroups are long where there are many hierarchies: one that changes will do.
fn shortened(text: &str) -> String {
    let word = text.split(' ').find(|word| word.starts_with("memory:") || word.starts_with(':'));
    let text = word.filter(|_| text.contains(":/")).unwrap_or(text);
    match text.char_indices().nth(18) {
        Some((at, _)) => format!("{}...", text.get(..at).unwrap_or(text)),
        None => text.to_owned(),
    }
}

/// What a process sees in new namespaces of these kinds.
fn read(stage: &Stage, flags: libc::c_int, names: &str, dir: &str) -> Result<Readings, LabError> {
    let script = format!("has={names}\ndir='{dir}'\n{SCRIPT}");
    if flags == 0 {
        let script = script.replace("$pid", "self");
        let ran = run_well(stage, Side::Host, &Given::default(), &script)?;
        return Ok(Readings::parse(ran.stdout.lines()));
    }
    let busybox = stage.busybox()?;
    let mut command = Command::new(&busybox);
    // The shell's child; what follows it keeps the shell from becoming that child.
    let outer = r#"pid=self; export pid; "$0" sh -c "$1"; exit $?"#;
    command.args(["sh", "-c", outer]).arg(busybox).arg(script);
    let map = |id: String| {
        CString::new(format!("0 {id} 1")).map_err(|error| LabError::host("map the user")(error.into()))
    };
    let users = map(nix::unistd::geteuid().to_string())?;
    let groups = map(nix::unistd::getegid().to_string())?;
    let enter = move || {
        // SAFETY: namespaces of this process alone.
        if unsafe { libc::unshare(flags) } != 0 {
            return Err(io::Error::last_os_error());
        }
        if flags & libc::CLONE_NEWUSER != 0 {
            put(c"/proc/self/setgroups", b"deny")?;
            put(c"/proc/self/uid_map", users.as_bytes())?;
            put(c"/proc/self/gid_map", groups.as_bytes())?;
        }
        Ok(())
    };
    // SAFETY: between fork and exec it makes system calls only.
    unsafe { command.pre_exec(enter) };
    let what = "the process in new namespaces";
    let ran = Session::start(stage, what, &mut command, RUN_WITHIN)?.finish()?;
    match ran.code {
        0 => Ok(Readings::parse(ran.stdout.lines())),
        code => Err(LabError::Ended { what: what.into(), code, message: ran.message() }),
    }
}

/// Writes to a file of the kernel's. Makes system calls only.
fn put(path: &std::ffi::CStr, text: &[u8]) -> io::Result<()> {
    // SAFETY: the path ends in a zero.
    let fd = unsafe { libc::open(path.as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the bytes are valid for reads.
    let written = unsafe { libc::write(fd, text.as_ptr().cast(), text.len()) };
    let error = io::Error::last_os_error();
    // SAFETY: it has just been opened here.
    unsafe { libc::close(fd) };
    if written < 0 { Err(error) } else { Ok(()) }
}

/// Median time to create, end and wait for a process in new namespaces of these kinds, in microseconds.
fn time(flags: libc::c_int) -> Result<f64, LabError> {
    let mut times = Vec::new();
    for _ in 0..ROUNDS {
        let begin = Instant::now();
        create(flags).map_err(LabError::host("create a process in new namespaces"))?;
        times.push(begin.elapsed().as_secs_f64() * 1e6);
    }
    times.sort_unstable_by(f64::total_cmp);
    Ok(times.get(ROUNDS / 2).copied().unwrap_or_default())
}

fn create(flags: libc::c_int) -> io::Result<()> {
    // SAFETY: for this structure of numbers all zeros are valid.
    let mut args = unsafe { std::mem::zeroed::<libc::clone_args>() };
    args.flags = u64::from(flags.cast_unsigned());
    args.exit_signal = libc::SIGCHLD.cast_unsigned().into();
    // SAFETY: without CLONE_VM the child has a copy of all memory, and a stack in it; it only ends.
    match unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of::<libc::clone_args>()) } {
        0 => {
            // SAFETY: ends this process at once, without what an exit of the lab's would do.
            unsafe { libc::_exit(0) }
        }
        -1 => Err(io::Error::last_os_error()),
        pid => {
            let pid = libc::pid_t::try_from(pid).map_err(io::Error::other)?;
            // It ends by itself at once.
            nix::sys::wait::waitpid(nix::unistd::Pid::from_raw(pid), None)?;
            Ok(())
        }
    }
}

/// A segment of shared memory, for others to see.
struct Segment(libc::c_int);

impl Segment {
    fn new() -> Self {
        // SAFETY: makes a segment of a page that is attached nowhere; -1 if there is none.
        Self(unsafe { libc::shmget(libc::IPC_PRIVATE, 4096, 0o600) })
    }
}

impl Drop for Segment {
    fn drop(&mut self) {
        if self.0 >= 0 {
            // SAFETY: it is ours; the structure is not used for this command.
            unsafe { libc::shmctl(self.0, libc::IPC_RMID, std::ptr::null_mut()) };
        }
    }
}
