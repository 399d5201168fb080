//! From root to the user that a broker runs as: once keys are read and ports are bound, for good.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::unistd::{User, initgroups, setgid, setuid};

use super::Failure;
use crate::config::Settings;

/// Becomes the configured user, if this is root's process and one is configured; nothing else has been started yet.
/// What the broker writes is that user's from now on, and so is what root has left in the data folder.
pub(super) fn drop_to(settings: &Settings) -> Result<Option<String>, Failure> {
    let Some(name) = settings.user.as_ref().filter(|_| rustix::process::geteuid().is_root()) else {
        return Ok(None);
    };
    let failed =
        |what: &str, error: &dyn std::fmt::Display| Failure::new(format!("cannot become {name} (user): {what}{error}"));
    let user = User::from_name(name)
        .map_err(|error| failed("", &error))?
        .ok_or_else(|| failed("", &"there is no such user here; make it, or name another"))?;
    if user.uid.is_root() {
        return Ok(None);
    }
    std::fs::create_dir_all(&settings.data)
        .and_then(|()| give(&settings.data, user.uid.as_raw(), user.gid.as_raw(), 0))
        .map_err(|error| failed(&format!("{}: ", settings.data.display()), &error))?;
    let group = std::ffi::CString::new(name.as_str()).map_err(|error| failed("", &error))?;
    initgroups(&group, user.gid)
        .and_then(|()| setgid(user.gid))
        .and_then(|()| setuid(user.uid))
        .map_err(|error| failed("", &error))?;
    // There is no way back: whoever could take it would be in for all.
    if setuid(nix::unistd::Uid::from_raw(0)).is_ok() {
        return Err(failed("", &"root's rights could be had again"));
    }
    Ok(Some(name.clone()))
}

/// What a reload will need, and this user cannot read; and the command that mends it.
pub(super) fn unreadable(settings: &Settings, user: &str) -> Option<String> {
    let keys = settings.tls_files().map(|tls| &tls.key);
    let files = std::iter::once(&settings.file).chain(&settings.passwords).chain(&settings.acl).chain(keys);
    let closed: Vec<&std::path::PathBuf> = files.filter(|path| std::fs::File::open(path).is_err()).collect();
    let first = closed.first()?;
    Some(format!(
        "{user} cannot read {}: a reload will not take anything up; `chown -R {user} {} {}` lets it",
        first.display(),
        settings.folder().display(),
        settings.pki.display()
    ))
}

/// Root's files in a folder of ours, a few levels deep, never by way of a link.
fn give(path: &Path, uid: u32, gid: u32, depth: usize) -> std::io::Result<()> {
    let metadata = std::fs::symlink_metadata(path)?;
    if metadata.uid() == 0 {
        std::os::unix::fs::lchown(path, Some(uid), Some(gid))?;
    }
    if metadata.is_dir() && depth < 4 {
        for entry in std::fs::read_dir(path)? {
            give(&entry?.path(), uid, gid, depth + 1)?;
        }
    }
    Ok(())
}
