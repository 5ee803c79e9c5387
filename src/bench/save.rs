//! Files that are whole at any moment, whatever kills the writer.

use std::fs::Permissions;
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// Replaces a file by another with these contents. Special files, as `/dev/stdout`, are written to.
///
/// # Errors
/// The directory or the file cannot be written.
pub fn save(path: &Path, contents: &[u8]) -> io::Result<()> {
    if path.metadata().is_ok_and(|metadata| !metadata.is_file()) {
        return std::fs::write(path, contents);
    }
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    // As any other file, if the umask lets it.
    let mut builder = tempfile::Builder::new();
    let mut file =
        builder.prefix(".tandem-").permissions(Permissions::from_mode(0o666)).tempfile_in(directory)?;
    file.write_all(contents)?;
    file.persist(path)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_sees_half_a_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("results.json");
        let texts = [vec![b'a'; 300_000], vec![b'b'; 200_000]];
        save(&path, &texts[0]).unwrap();
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| (0..100).for_each(|n| save(&path, &texts[n % 2]).unwrap()));
            while !writer.is_finished() {
                assert!(texts.contains(&std::fs::read(&path).unwrap()));
            }
        });
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
        assert!(save(&dir.path().join("none/x"), b"").is_err());
        save(Path::new("/dev/null"), b"x").unwrap();
    }
}
