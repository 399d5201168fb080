//! From root to the user that a broker runs as: once keys are read and ports are bound, for good.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use nix::unistd::{User, initgroups, setgid, setuid};
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, openat};

use super::{Failure, log};
use crate::config::{ListenerAddress, Settings};

/// Becomes the configured user, if this is root's process and one is configured; nothing else has been started yet.
/// What the broker writes is that user's from now on, and so is what root has left in the data folder.
pub(super) fn drop_to(settings: &Settings, log_files: &log::Files) -> Result<Option<String>, Failure> {
    let Some(name) = settings.user.as_ref().filter(|_| rustix::process::geteuid().is_root()) else {
        return Ok(None);
    };
    let failed =
        |what: &str, error: &dyn std::fmt::Display| Failure::new(format!("cannot become {name} (user): {what}{error}"));
    const SYSTEM: [&str; 12] =
        ["/", "/etc", "/var", "/var/lib", "/usr", "/home", "/root", "/tmp", "/run", "/opt", "/srv", "/var/log"];
    if SYSTEM.iter().any(|folder| settings.data == Path::new(folder)) {
        return Err(failed(
            "",
            &format!("{} is the system's; `data:` needs a folder of its own", settings.data.display()),
        ));
    }
    let find = |name: &str| User::from_name(name).map_err(|error| failed("", &error));
    let user = match find(name)? {
        // As Mosquitto does where its own user was never made.
        None if settings.stands_in && name == "mosquitto" => find("nobody")?,
        found => found,
    };
    let user = user.ok_or_else(|| failed("", &"there is no such user here; make it, or name another"))?;
    if user.uid.is_root() {
        return Ok(None);
    }
    give(&settings.data, user.uid.as_raw(), user.gid.as_raw())
        .map_err(|error| failed(&format!("{}: ", settings.data.display()), &error))?;
    log_files.give(user.uid.as_raw(), user.gid.as_raw());
    for listener in &settings.listeners {
        if let ListenerAddress::Unix(path) = &listener.address {
            give_socket(path, user.uid.as_raw(), user.gid.as_raw())
                .map_err(|error| failed(&format!("{}: ", path.display()), &error))?;
        }
    }
    let group = std::ffi::CString::new(user.name.as_str()).map_err(|error| failed("", &error))?;
    initgroups(&group, user.gid)
        .and_then(|()| setgid(user.gid))
        .and_then(|()| setuid(user.uid))
        .map_err(|error| failed("", &error))?;
    // There is no way back: whoever could take it would be in for all.
    if setuid(nix::unistd::Uid::from_raw(0)).is_ok() {
        return Err(failed("", &"root's rights could be had again"));
    }
    Ok(Some(user.name))
}

/// What a reload will need, and this user cannot read; and the command that mends it.
pub(super) fn unreadable(settings: &Settings, user: &str) -> Option<String> {
    let keys = settings.tls_files().map(|tls| &tls.key);
    let files =
        std::iter::once(&settings.file).chain(settings.password_files()).chain(settings.acl_files()).chain(keys);
    let closed: Vec<&std::path::PathBuf> = files.filter(|path| std::fs::File::open(path).is_err()).collect();
    let first = closed.first()?;
    if settings.stands_in {
        return Some(format!(
            "{user} cannot read {0}: a reload will not take anything up; `chgrp {user} {0}; chmod g+r {0}` lets it",
            first.display()
        ));
    }
    Some(format!(
        "{user} cannot read {}: a reload, and every change of clients, will not be taken up; give {user} this site's files but \
         the CA's key: `chown -R {user} {} {}; chown root {}`",
        first.display(),
        settings.folder().display(),
        settings.pki.display(),
        settings.ca_key().display()
    ))
}

/// Makes the data folder, or gives it away with what lies in it, if it is root's: nobody else could then have put a link
/// there meanwhile. One that is somebody's already is left as it is.
fn give(data: &Path, uid: u32, gid: u32) -> std::io::Result<()> {
    std::fs::create_dir_all(data)?;
    // Whoever can put a link there could have any folder given away.
    let folder = OpenOptions::new()
        .read(true)
        .custom_flags((OFlags::NOFOLLOW | OFlags::DIRECTORY).bits() as i32)
        .open(data)
        .map_err(|error| {
            std::io::Error::other(format!("it is a link, or no folder ({error}); name the folder itself"))
        })?;
    if folder.metadata()?.uid() != 0 {
        return Ok(());
    }
    give_below(&folder, uid, gid, 0)
}

/// A socket that root has just bound: its user's programs connect to it, and a start that is not root's replaces it.
fn give_socket(path: &Path, uid: u32, gid: u32) -> std::io::Result<()> {
    // Looked at and given by one handle: by its name somebody could put another thing there in between.
    let socket = rustix::fs::open(path, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
    let stat = rustix::fs::fstat(&socket)?;
    if stat.st_uid == 0 && FileType::from_raw_mode(stat.st_mode) == FileType::Socket {
        let (uid, gid) = (rustix::fs::Uid::from_raw(uid), rustix::fs::Gid::from_raw(gid));
        rustix::fs::chownat(&socket, "", Some(uid), Some(gid), AtFlags::EMPTY_PATH)?;
    }
    Ok(())
}

/// Below first, and the folder last: as long as it is root's nobody changes what is in it.
fn give_below(folder: &File, uid: u32, gid: u32, depth: usize) -> std::io::Result<()> {
    if depth < 3 {
        for entry in Dir::read_from(folder)? {
            let entry = entry?;
            if [c".", c".."].contains(&entry.file_name()) {
                continue;
            }
            let flags = OFlags::NOFOLLOW | OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
            // A link, or a socket that was left behind: not ours to give.
            let Ok(opened) = openat(folder, entry.file_name(), flags, Mode::empty()) else { continue };
            let opened = File::from(opened);
            let metadata = opened.metadata()?;
            // A file with another name elsewhere is somebody else's too.
            if metadata.uid() != 0 || (metadata.is_file() && metadata.nlink() > 1) {
                continue;
            }
            match metadata.is_dir() {
                true => give_below(&opened, uid, gid, depth + 1)?,
                false => std::os::unix::fs::fchown(&opened, Some(uid), Some(gid))?,
            }
        }
    }
    std::os::unix::fs::fchown(folder, Some(uid), Some(gid))
}
