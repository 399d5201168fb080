use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use thiserror::Error;

const SOCKET: &str = "lockgate.sock";
const LOCK: &str = "lock";

/// Held by the one broker that runs on a data folder. Its file and the socket go with it, and so
/// does the folder if it was made for the lock and nothing else came to lie in it: a failed start
/// leaves nothing behind.
#[derive(Debug)]
pub struct DataLock {
    data: PathBuf,
    is_folder_new: bool,
    _file: File,
}

impl Drop for DataLock {
    fn drop(&mut self) {
        drop(fs::remove_file(self.data.join(SOCKET)));
        // Still locked: who opened the file before sees in `lock_data` that it is no longer the one.
        drop(fs::remove_file(self.data.join(LOCK)));
        if self.is_folder_new {
            // Refused by the system where anything lies in it.
            drop(fs::remove_dir(&self.data));
        }
    }
}

#[derive(Debug, Error)]
pub enum DataLockError {
    #[error("another broker runs on the data folder {}: see `lockgate status`; a second one needs its own `data:`", .0.display())]
    Taken(PathBuf),
    #[error("cannot use the data folder {}: {error}", .path.display())]
    Io { path: PathBuf, error: io::Error },
}

/// Makes sure that nobody else runs on the data folder; makes it if need be.
pub fn lock_data(data: &Path) -> Result<DataLock, DataLockError> {
    let failed = |error| DataLockError::Io { path: data.to_owned(), error };
    let is_folder_new = !data.is_dir();
    if is_folder_new {
        fs::create_dir_all(data).map_err(failed)?;
        fs::set_permissions(data, fs::Permissions::from_mode(0o700)).map_err(failed)?;
    }
    let path = data.join(LOCK);
    // A broker that ends takes the file along; each that ends in between costs one more round.
    for _ in 0..10 {
        let file =
            OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&path).map_err(failed)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) if is_at(&file, &path) => {
                return Ok(DataLock { data: data.to_owned(), is_folder_new, _file: file });
            }
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => break,
            Err(error) => return Err(failed(error.into())),
        }
    }
    Err(DataLockError::Taken(data.to_owned()))
}

/// Whether the open file is still the one that stands at the path.
fn is_at(file: &File, path: &Path) -> bool {
    let identity = |metadata: fs::Metadata| (metadata.dev(), metadata.ino());
    file.metadata().map(identity).ok() == fs::metadata(path).map(identity).ok()
}

/// Whether a broker runs on the data folder; makes and changes nothing.
pub fn is_data_taken(data: &Path) -> bool {
    File::open(data.join(LOCK)).is_ok_and(|file| {
        // Shared: two that only look do not see each other.
        flock(&file, FlockOperation::NonBlockingLockShared) == Err(rustix::io::Errno::WOULDBLOCK)
    })
}

/// The socket's path with the folder it goes through held open: a path through the open folder is
/// short however deep the folder lies, and the system's limit of about 100 bytes is no concern.
pub(super) fn path(data: &Path) -> io::Result<(File, PathBuf)> {
    let folder = File::open(data)?;
    let path = PathBuf::from(format!("/proc/self/fd/{}/{SOCKET}", folder.as_raw_fd()));
    Ok((folder, path))
}

/// Binds the socket, for its owner alone. What a broker that died left is replaced: the data
/// folder's lock says that none runs.
pub(super) fn bind(data: &Path, _lock: &DataLock) -> io::Result<std::os::unix::net::UnixListener> {
    let (_folder, path) = path(data)?;
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    // The folder is its owner's alone: nobody else comes by before the mode is set.
    let socket = std::os::unix::net::UnixListener::bind(&path)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}
