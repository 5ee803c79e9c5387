//! Control groups of this host, in whichever layout.

use crate::{Child, LIMIT, common};
use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tandem::container::cgroup::{CgroupError, Group, Limits, remove_stale, unique_name};
use tandem::host::cgroup::{Cgroups, Version};

const NONE: Limits = Limits { memory: None, cpus: None, pids: None };

/// linux/sched.h
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// A group for these limits; if this host cannot have it, the test is skipped.
fn group(test: &str, limits: &Limits) -> Option<Group> {
    let cgroups = Cgroups::detect(Path::new("/")).unwrap();
    match Group::create_accounted(&cgroups, limits, &unique_name().unwrap()) {
        Ok(group) if group.directories().count() == 0 => common::skip(test, "no cgroup hierarchy"),
        Ok(group) => return Some(group),
        Err(error @ (CgroupError::Missing { .. } | CgroupError::NotDelegated { .. })) => {
            common::skip(test, &error.to_string());
        }
        Err(error @ CgroupError::Populated { .. }) => common::skip(test, &error.to_string()),
        Err(error) => panic!("{error}"),
    }
    None
}

fn directories(group: &Group) -> Vec<PathBuf> {
    group.directories().map(Path::to_owned).collect()
}

#[track_caller]
fn assert_gone(dirs: &[PathBuf]) {
    assert!(!dirs.is_empty());
    for dir in dirs {
        assert!(!dir.exists(), "{}", dir.display());
    }
}

/// Writes to so many bytes of new memory.
fn touch(bytes: usize) -> Result<(), String> {
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_POPULATE;
    // SAFETY: a new mapping of which nobody has a reference.
    let memory = unsafe { libc::mmap(std::ptr::null_mut(), bytes, protection, flags, -1, 0) };
    if memory == libc::MAP_FAILED {
        return Err(std::io::Error::last_os_error().to_string());
    }
    for offset in (0..bytes).step_by(4096) {
        // SAFETY: within the mapping.
        unsafe { memory.cast::<u8>().add(offset).write_volatile(1) };
    }
    Ok(())
}

#[test]
fn a_memory_limit_bites() {
    let test = "a_memory_limit_bites";
    let Some(group) = group(test, &Limits { memory: Some(16 << 20), ..NONE }) else { return };
    let (mut modest, mut hog) = (Child::fork(|| touch(4 << 20)), Child::fork(|| touch(256 << 20)));
    group.add(modest.pid).unwrap();
    group.add(hog.pid).unwrap();
    modest.go();
    assert_eq!(modest.wait(LIMIT), Some(0));
    let peak = group.usage().peak_memory;
    assert_eq!(group.usage().oom_kills, Some(0));
    hog.go();
    let status = hog.wait(LIMIT).unwrap();
    assert!(libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == libc::SIGKILL, "{status:#x}");
    assert_eq!(group.usage().oom_kills, Some(1));
    // Kernels before 5.19 tell no peak in v2.
    if let Some(peak) = peak {
        assert!(((4 << 20)..(16 << 20)).contains(&peak), "{peak}");
        let peak = group.usage().peak_memory.unwrap();
        assert!(((15 << 20)..=(16 << 20)).contains(&peak), "{peak}");
    }
    group.remove().unwrap();
}

/// Counts until told to stop.
fn spin() -> Result<(), String> {
    loop {
        std::hint::spin_loop();
    }
}

#[test]
fn half_a_processor_is_half_of_the_time() {
    let test = "half_a_processor_is_half_of_the_time";
    let Some(group) = group(test, &Limits { cpus: Some(0.5), ..NONE }) else { return };
    // Two, that more than half would be had on any host with two processors.
    let mut children = [Child::fork(spin), Child::fork(spin)];
    for child in &mut children {
        group.add(child.pid).unwrap();
    }
    // Before all others of a busy host, so that it is the limit that holds them.
    for dir in group.directories() {
        for (file, most) in [("cpu.weight", "10000"), ("cpu.shares", "262144")] {
            if dir.join(file).exists() {
                std::fs::write(dir.join(file), most).unwrap();
            }
        }
    }
    let (started, before) = (Instant::now(), cpu_time(&children));
    children.iter_mut().for_each(Child::go);
    std::thread::sleep(Duration::from_secs(2));
    let used = cpu_time(&children) - before;
    let share = used.as_secs_f64() / started.elapsed().as_secs_f64();
    assert!((0.4..0.6).contains(&share), "{share}");
    let usage = group.usage();
    assert!(usage.cpu_throttled.unwrap() > 0, "{usage:?}");
    let counted = Duration::from_nanos(usage.cpu_total.unwrap());
    // Its unit is a microsecond in v2.
    assert!(
        counted + Duration::from_millis(1) > used && counted < used + Duration::from_secs(1),
        "{counted:?} {used:?}"
    );
    assert!(usage.cpu_user.unwrap() > usage.cpu_system.unwrap(), "{usage:?}");
    let dirs = directories(&group);
    group.remove().unwrap();
    assert_gone(&dirs);
    for mut child in children {
        assert_eq!(child.signal(), Some(libc::SIGKILL));
    }
}

/// CPU time by the processes' own clocks, which know nothing of groups.
fn cpu_time(children: &[Child]) -> Duration {
    let time = |child: &Child| {
        // SAFETY: for a time all zeros are valid.
        let (mut clock, mut time) = (0, unsafe { std::mem::zeroed::<libc::timespec>() });
        // SAFETY: both are valid for writes.
        unsafe {
            assert_eq!(libc::clock_getcpuclockid(child.pid, &mut clock), 0);
            assert_eq!(libc::clock_gettime(clock, &mut time), 0);
        }
        Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
    };
    children.iter().map(time).sum()
}

/// Forks so many children that stay until the end; they belong to the group.
fn multiply(count: usize) -> Result<(), String> {
    for number in 0..count {
        // SAFETY: the child only waits.
        match unsafe { libc::fork() } {
            0 => loop {
                // SAFETY: plain system call.
                unsafe { libc::pause() };
            },
            pid if pid < 0 => return Err(format!("{number} {}", std::io::Error::last_os_error())),
            _ => {}
        }
    }
    Ok(())
}

#[test]
fn a_limit_of_processes_refuses_a_fork_and_the_rest_is_killed() {
    let test = "a_limit_of_processes_refuses_a_fork_and_the_rest_is_killed";
    let Some(group) = group(test, &Limits { pids: Some(5), ..NONE }) else { return };
    let mut child = Child::fork(|| match multiply(20) {
        Err(text) if text.starts_with("4 ") && text.contains("os error 11") => Ok(()),
        other => Err(format!("{other:?}")),
    });
    group.add(child.pid).unwrap();
    child.go();
    assert_eq!(child.wait(LIMIT), Some(0));
    assert_eq!(group.usage().forks_refused, Some(1));
    let dirs = directories(&group);
    let left: Vec<_> =
        std::fs::read_to_string(dirs[0].join("cgroup.procs")).unwrap().lines().map(str::to_owned).collect();
    assert_eq!(left.len(), 4, "{left:?}");
    // By being dropped.
    drop(group);
    assert_gone(&dirs);
}

#[test]
fn every_process_in_a_group_and_the_groups_in_it_is_killed() {
    let test = "every_process_in_a_group_and_the_groups_in_it_is_killed";
    let Some(group) = group(test, &NONE) else { return };
    let mut child = Child::fork(|| multiply(10).and_then(|()| spin()));
    group.add(child.pid).unwrap();
    child.go();
    let dirs = directories(&group);
    let count = || std::fs::read_to_string(dirs[0].join("cgroup.procs")).unwrap().lines().count();
    let deadline = Instant::now() + LIMIT;
    while count() < 11 {
        assert!(Instant::now() < deadline, "{}", count());
        std::thread::sleep(Duration::from_millis(1));
    }
    for dir in &dirs {
        let inside = dir.join("inside");
        std::fs::create_dir(&inside).unwrap();
        std::fs::write(inside.join("cgroup.procs"), child.pid.to_string()).unwrap();
    }
    let started = Instant::now();
    group.remove().unwrap();
    assert!(started.elapsed() < Duration::from_secs(3));
    assert_gone(&dirs);
    assert_eq!(child.signal(), Some(libc::SIGKILL));
}

#[test]
fn a_process_is_born_in_a_group() {
    let test = "a_process_is_born_in_a_group";
    let Some(group) = group(test, &NONE) else { return };
    let Some(fd) = group.clone_into() else { return common::skip(test, "no cgroup v2 hierarchy") };
    // SAFETY: of the arguments all zeros are valid.
    let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
    arguments.flags = CLONE_INTO_CGROUP;
    arguments.exit_signal = libc::SIGCHLD as u64;
    arguments.cgroup = fd.as_raw_fd() as u64;
    // SAFETY: without a stack of its own this is a fork; the child only waits.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw mut arguments, size_of_val(&arguments)) };
    if pid == 0 {
        loop {
            // SAFETY: plain system call.
            unsafe { libc::pause() };
        }
    }
    assert!(pid > 0, "{}", std::io::Error::last_os_error());
    let mut child = fake(pid as libc::pid_t);
    group.add_to_v1(child.pid).unwrap();
    for dir in group.directories() {
        let procs = std::fs::read_to_string(dir.join("cgroup.procs")).unwrap();
        assert_eq!(procs.trim(), child.pid.to_string(), "{}", dir.display());
    }
    group.kill();
    assert_eq!(child.signal(), Some(libc::SIGKILL));
    group.remove().unwrap();
}

/// A child that was not forked here.
fn fake(pid: libc::pid_t) -> Child {
    let (said, _) = std::io::pipe().unwrap();
    Child { pid, go: None, said, reaped: false }
}

#[test]
fn groups_of_a_killed_owner_are_removed_and_no_others() {
    let test = "groups_of_a_killed_owner_are_removed_and_no_others";
    let Some(mine) = group(test, &NONE) else { return };
    let cgroups = Cgroups::detect(Path::new("/")).unwrap();
    let (told, mut tell) = std::io::pipe().unwrap();
    // An owner whose group has a process that outlives it, as after kill -9.
    let mut owner = Child::fork(move || {
        let name = unique_name().map_err(|error| error.to_string())?;
        let cgroups = Cgroups::detect(Path::new("/")).map_err(|error| error.to_string())?;
        let group = Group::create_accounted(&cgroups, &NONE, &name).map_err(|error| error.to_string())?;
        // SAFETY: the child only waits.
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            // Nobody is to wait for it at the end of a pipe.
            // SAFETY: plain system calls.
            unsafe { libc::syscall(libc::SYS_close_range, 0, u32::MAX, 0) };
            spin()?;
        }
        group.add(pid).map_err(|error| error.to_string())?;
        let dirs: Vec<_> = group.directories().map(|dir| dir.display().to_string()).collect();
        tell.write_all(format!("{pid} {}\n", dirs.join(" ")).as_bytes())
            .map_err(|error| error.to_string())?;
        spin()
    });
    owner.go();
    let mut line = String::new();
    BufReader::new(told).read_line(&mut line).unwrap();
    let (orphan, dirs) = line.split_once(' ').unwrap();
    let dirs: Vec<PathBuf> = dirs.split_whitespace().map(PathBuf::from).collect();
    remove_stale(&cgroups);
    assert!(dirs.iter().all(|dir| dir.is_dir()), "the owner lives");
    drop(owner);
    assert!(dirs.iter().all(|dir| dir.is_dir()), "nobody removed them yet");
    // Another test may have been faster.
    remove_stale(&cgroups);
    assert_gone(&dirs);
    assert!(mine.directories().all(Path::is_dir));
    let state = std::fs::read_to_string(format!("/proc/{orphan}/stat")).unwrap_or_default();
    assert!(state.is_empty() || state.contains(") Z"), "{state}");
    mine.remove().unwrap();
}

#[test]
fn controllers_of_v2_are_enabled_where_they_are_needed() {
    let test = "controllers_of_v2_are_enabled_where_they_are_needed";
    let Some(group) = group(test, &Limits { memory: Some(64 << 20), cpus: Some(1.5), pids: Some(8) }) else {
        return;
    };
    let dirs = directories(&group);
    let read = |file| std::fs::read_to_string(dirs[0].join(file)).map_err(|error| error.to_string());
    if read("memory.max").is_err() {
        return common::skip(test, "the memory controller is not in a v2 hierarchy");
    }
    let values = ["memory.max", "memory.swap.max", "cpu.max", "pids.max"].map(read);
    assert_eq!(values, ["67108864\n", "0\n", "150000 100000\n", "8\n"].map(|value| Ok(value.to_owned())));
    // Not further away than necessary.
    let cgroups = Cgroups::detect(Path::new("/")).unwrap();
    let v2 = cgroups.hierarchies.iter().find(|h| h.version == Version::V2).unwrap();
    let parent = dirs[0].parent().unwrap();
    let nearer: Vec<_> = v2.group.ancestors().take_while(|dir| *dir != parent).collect();
    assert!(v2.group.starts_with(parent), "{}", parent.display());
    for dir in nearer {
        let processes = std::fs::read_to_string(dir.join("cgroup.procs")).unwrap();
        let available = std::fs::read_to_string(dir.join("cgroup.controllers")).unwrap();
        let lacks = ["memory", "cpu", "pids"].iter().any(|c| !available.split_whitespace().any(|a| a == *c));
        assert!(!processes.is_empty() || lacks, "{}", dir.display());
    }
    group.remove().unwrap();
    assert_gone(&dirs);
}
