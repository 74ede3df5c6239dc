//! The directory of the workers' sockets: made for one fleet with mode 0700, removed with it.
//!
//! A gateway killed with SIGKILL cannot remove its own; the next one of the same user does. It tells an abandoned
//! directory by its lock file, which the kernel unlocks when its holder dies, in whatever container that was. Only
//! files named as ours and empty directories are ever removed.

use super::FleetError;
use std::ffi::OsString;
use std::fs::File;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

/// Longest path Linux takes for a socket (`sockaddr_un`), the closing NUL apart.
pub(super) const SOCKET_PATH_BYTES_MAX: usize = 107;
/// How the directories of all fleets begin.
const PREFIX: &str = "rocmforge-";

/// The file whose lock says that a directory is in use.
const LOCK_NAME: &str = "lock";

/// A directory name no other fleet uses: under `XDG_RUNTIME_DIR`, else the temporary directory. Nothing is created.
pub fn private_run_dir(variable: impl Fn(&str) -> Option<OsString>) -> PathBuf {
    /// Tells several fleets of one process apart (tests).
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let base = match variable("XDG_RUNTIME_DIR") {
        Some(path) if Path::new(&path).is_dir() => PathBuf::from(path),
        _ => std::env::temp_dir(),
    };
    let sequence = NEXT.fetch_add(1, Ordering::Relaxed);
    base.join(format!("{PREFIX}{}-{sequence}", std::process::id()))
}

/// A directory in use by this process. Dropping it removes the sockets and, if nothing else is left, the directory.
#[derive(Debug)]
pub(super) struct RunDir {
    path: PathBuf,
    sockets: Vec<PathBuf>,
    _lock: File,
}

impl RunDir {
    /// Makes `path` with mode 0700, or takes one that is ours alone already.
    pub(super) fn make(path: &Path, workers: usize) -> Result<Self, FleetError> {
        let sockets: Vec<PathBuf> =
            (0..workers).map(|index| path.join(format!("worker-{index}.sock"))).collect();
        for socket in &sockets {
            let bytes = socket.as_os_str().len();
            if bytes > SOCKET_PATH_BYTES_MAX {
                return Err(FleetError::PathTooLong { path: socket.clone(), bytes });
            }
        }
        let io = |source| FleetError::RunDirectory { path: path.to_owned(), source };
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(io)?;
        let found = std::fs::symlink_metadata(path).map_err(io)?;
        let (mode, owner) = (found.mode() & 0o777, found.uid());
        if !found.is_dir() || mode & 0o077 != 0 || owner != own_uid() {
            return Err(FleetError::SharedDirectory { path: path.to_owned(), mode, owner });
        }
        let lock = lock(path).map_err(io)?;
        if let Some(parent) = path.parent() {
            remove_abandoned(parent);
        }
        Ok(Self { path: path.to_owned(), sockets, _lock: lock })
    }

    /// Each worker's socket.
    pub(super) fn sockets(&self) -> &[PathBuf] {
        &self.sockets
    }

    /// Removes it now; dropping does nothing further.
    pub(super) fn remove(&self) {
        remove(&self.path);
    }
}

impl Drop for RunDir {
    fn drop(&mut self) {
        remove(&self.path);
    }
}

/// Locks `path` for this process. The file gets its name when it is locked already, so that nobody finds it free.
fn lock(path: &Path) -> std::io::Result<File> {
    let named = path.join(LOCK_NAME);
    if let Ok(present) = File::open(&named) {
        present.try_lock().map_err(std::io::Error::from)?;
        return Ok(present);
    }
    let unnamed = path.join(format!("{LOCK_NAME}.new"));
    let file = File::create(&unnamed)?;
    file.try_lock().map_err(std::io::Error::from)?;
    std::fs::rename(&unnamed, &named)?;
    Ok(file)
}

/// Removes the workers' sockets and the lock in `path` and, if nothing else is left there, `path` itself.
pub(super) fn remove(path: &Path) {
    let Ok(entries) = std::fs::read_dir(path) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name == LOCK_NAME || (name.starts_with("worker-") && name.ends_with(".sock")) {
            let _ = std::fs::remove_file(entry.path());
        }
    }
    let _ = std::fs::remove_dir(path);
}

/// Removes the directories of fleets that are no more.
fn remove_abandoned(parent: &Path) {
    let Ok(entries) = std::fs::read_dir(parent) else { return };
    for entry in entries.flatten().filter(|entry| entry.file_name().to_string_lossy().starts_with(PREFIX)) {
        let path = entry.path();
        let ours =
            std::fs::symlink_metadata(&path).is_ok_and(|found| found.is_dir() && found.uid() == own_uid());
        let Some(lock) = ours.then(|| File::open(path.join(LOCK_NAME)).ok()).flatten() else { continue };
        if lock.try_lock().is_ok() {
            remove(&path);
        }
    }
}

fn own_uid() -> u32 {
    nix::unistd::geteuid().as_raw()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_directory_others_can_enter_is_refused() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("open");
        std::fs::create_dir(&path).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        assert!(matches!(RunDir::make(&path, 1), Err(FleetError::SharedDirectory { mode: 0o755, .. })));
        let link = parent.path().join("link");
        std::os::unix::fs::symlink(parent.path(), &link).unwrap();
        assert!(matches!(RunDir::make(&link, 1), Err(FleetError::SharedDirectory { .. })));
    }

    #[test]
    fn a_path_the_kernel_would_cut_is_refused_before_anything_is_made() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("x".repeat(100));
        assert!(matches!(RunDir::make(&path, 1), Err(FleetError::PathTooLong { bytes: 108.., .. })));
        assert!(!path.exists());
    }

    #[test]
    fn what_a_killed_gateway_left_is_removed_and_nothing_else() {
        let parent = tempfile::tempdir().unwrap();
        let place = |name: &str, files: &[&str]| {
            let path = parent.path().join(name);
            std::fs::create_dir(&path).unwrap();
            for file in files {
                std::fs::write(path.join(file), "").unwrap();
            }
            path
        };
        let abandoned = place("rocmforge-1-0", &[LOCK_NAME, "worker-3.sock"]);
        let with_more = place("rocmforge-2-0", &[LOCK_NAME, "notes.txt"]);
        let other = place("rocmforge-models", &["worker-0.sock"]);
        let in_use = RunDir::make(&parent.path().join("rocmforge-3-0"), 1).unwrap();
        let next = RunDir::make(&parent.path().join("rocmforge-4-0"), 1).unwrap();
        assert!(!abandoned.exists());
        assert!(with_more.join("notes.txt").exists() && other.join("worker-0.sock").exists());
        assert!(in_use.path.exists(), "the lock of a living fleet holds");
        assert!(RunDir::make(&in_use.path, 1).is_err(), "one fleet a directory");
        let path = next.path.clone();
        drop(next);
        assert!(!path.exists());
    }
}
