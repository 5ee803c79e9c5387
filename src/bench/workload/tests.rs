use super::*;
use std::os::unix::fs::symlink;

fn root() -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    for dir in ["bin", "etc"] {
        fs::create_dir(root.path().join(dir)).unwrap();
    }
    fs::write(root.path().join("bin/tool"), "#!/bin/sh\n").unwrap();
    fs::set_permissions(root.path().join("bin/tool"), fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(root.path().join("etc/text"), "").unwrap();
    // Absolute in the root, not here.
    symlink("/bin/tool", root.path().join("bin/link")).unwrap();
    root
}

fn workload(root: &Path, command: &str) -> Result<Workload, WorkloadError> {
    Workload::new(vec![command.into()], Some(root), &Paths::in_cache(Path::new("/nonexistent")))
}

#[test]
fn a_command_is_looked_up_in_its_root() {
    let root = root();
    let found = workload(root.path(), "link").unwrap();
    assert_eq!(found.program, Path::new("/bin/link"));
    assert_eq!(found.file, root.path().canonicalize().unwrap().join("bin/tool"));
    assert!(!found.is_static());
    assert_eq!(workload(root.path(), "bin/tool").unwrap().program, Path::new("/bin/tool"));
    assert!(matches!(workload(root.path(), "sh"), Err(WorkloadError::NotFound { .. })));
    assert!(matches!(workload(root.path(), ""), Err(WorkloadError::Unnamed)));
    assert!(matches!(workload(root.path(), "/etc/text"), Err(WorkloadError::NotExecutable { .. })));
    fs::create_dir(root.path().join(".tandem")).unwrap();
    fs::write(root.path().join(".tandem/applets"), "cat\nrare\n").unwrap();
    assert!(matches!(workload(root.path(), "rare"), Err(WorkloadError::NotFound { .. })));
    fs::write(root.path().join("bin/busybox"), "").unwrap();
    assert_eq!(workload(root.path(), "rare").unwrap().program, Path::new("/bin/busybox"));
    assert!(matches!(workload(Path::new("/nonexistent"), "sh"), Err(WorkloadError::Root { .. })));
}

#[test]
fn without_root_and_guest_there_is_nothing_to_run() {
    let dir = tempfile::tempdir().unwrap();
    let error = Workload::new(vec!["sh".into()], None, &Paths::in_cache(dir.path())).unwrap_err();
    assert!(matches!(error, WorkloadError::NoRoot(_)), "{error}");
}

#[test]
fn a_program_without_interpreter_is_static() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let mut elf = [b"\x7fELF\x02".as_slice(), &[0; 59]].concat();
    elf[32] = 64;
    elf[54] = 56;
    elf[56] = 1;
    elf.resize(64 + 56, 0);
    elf[64] = 1;
    fs::write(file.path(), &elf).unwrap();
    assert!(is_static(file.path()).unwrap());
    elf[64] = 3;
    fs::write(file.path(), &elf).unwrap();
    assert!(!is_static(file.path()).unwrap());
    fs::write(file.path(), b"#!/bin/sh\n").unwrap();
    assert!(is_static(file.path()).is_err());
}
