//! The only writer of a site's files. A [`Transaction`] changes any number of them, all or none:
//! every new content is staged beside its place and synced, then a journal is put in place, which
//! is the commit; then the staged files are renamed and the journal is removed. Killed before the
//! journal, the old state is whole; killed after it, [`recover`] finishes the new one.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use thiserror::Error;
use zeroize::Zeroizing;

const STAGED: &str = ".lockgate-staged";
const JOURNAL: &str = ".lockgate-journal";
const LOCK: &str = ".lockgate-lock";
const NOFOLLOW: i32 = rustix::fs::OFlags::NOFOLLOW.bits() as i32;
/// No file of ours is larger.
const READ_MAX: u64 = 64 * 1024 * 1024;

#[derive(Debug, Error)]
pub enum FileError {
    #[error("cannot {action} {path}: {error}", path = .path.display())]
    Io { action: &'static str, path: PathBuf, error: io::Error },
    #[error("{path}: {what}", path = .path.display())]
    Content { path: PathBuf, what: String },
    #[error(
        "{path} can be read by others (mode {mode:04o}): a key or password in it is no secret; run `chmod 600 {path}`",
        path = .path.display()
    )]
    Loose { path: PathBuf, mode: u32 },
    #[error("another lockgate command is changing {path}; try again when it is done", path = .path.display())]
    Locked { path: PathBuf },
}

fn io_error<'a>(action: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> FileError + 'a {
    move |error| FileError::Io { action, path: path.to_owned(), error }
}

/// Reads a whole file of bounded size.
pub(super) fn read(path: &Path) -> Result<Vec<u8>, FileError> {
    let file = File::open(path).map_err(io_error("read", path))?;
    let mut bytes = Vec::new();
    file.take(READ_MAX).read_to_end(&mut bytes).map_err(io_error("read", path))?;
    Ok(bytes)
}

/// Reads a file that must be its owner's alone; its group may read it where root owns it.
pub fn read_secret(path: &Path) -> Result<Zeroizing<Vec<u8>>, FileError> {
    check_secret(path)?;
    read(path).map(Zeroizing::new)
}

/// Refuses a private key or password file that others can read or write.
pub fn check_secret(path: &Path) -> Result<(), FileError> {
    let metadata = fs::metadata(path).map_err(io_error("read", path))?;
    let mode = metadata.mode() & 0o7777;
    let group_reads = metadata.uid() == 0 && mode & 0o077 == 0o040;
    if mode & 0o077 != 0 && !group_reads {
        return Err(FileError::Loose { path: path.to_owned(), mode });
    }
    Ok(())
}

/// Whose a new file is to be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Owner {
    pub uid: u32,
    pub gid: u32,
}

/// Held while a command changes a site.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

impl Lock {
    /// Waits up to ten seconds for another command to finish. `folder` must exist.
    pub fn acquire(folder: &Path) -> Result<Lock, FileError> {
        let path = folder.join(LOCK);
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .custom_flags(NOFOLLOW)
            .open(&path)
            .map_err(io_error("open", &path))?;
        // Made by root in somebody's site, it has to be of use to that somebody.
        if rustix::process::geteuid().is_root() {
            let owner = fs::metadata(folder).map_err(io_error("read", folder))?;
            give(&file, Some(Owner { uid: owner.uid(), gid: owner.gid() }), &path)?;
        }
        for _ in 0..100 {
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(Lock { _file: file }),
                Err(rustix::io::Errno::WOULDBLOCK) => std::thread::sleep(std::time::Duration::from_millis(100)),
                Err(error) => return Err(io_error("lock", &path)(error.into())),
            }
        }
        Err(FileError::Locked { path: folder.to_owned() })
    }
}

#[derive(Debug)]
struct NewFile {
    path: PathBuf,
    bytes: Zeroizing<Vec<u8>>,
    mode: u32,
    owner: Option<Owner>,
}

/// Changes to a site's files that happen together or not at all.
#[derive(Debug)]
pub struct Transaction {
    /// Where the journal stands: a site's configuration folder.
    anchor: PathBuf,
    folders: Vec<(PathBuf, u32, Option<Owner>)>,
    files: Vec<NewFile>,
    removals: Vec<PathBuf>,
}

#[derive(Serialize, Deserialize, Default)]
struct Journal {
    /// Paths are relative to the anchor's parent where they lie below it, so that a moved site can
    /// be mended; others lie in the folders that [`recover`] is given.
    files: Vec<PathBuf>,
    removals: Vec<PathBuf>,
}

impl Transaction {
    pub fn new(anchor: &Path) -> Transaction {
        Transaction { anchor: anchor.to_owned(), folders: Vec::new(), files: Vec::new(), removals: Vec::new() }
    }

    /// A folder to be there, made with `mode` if it is not.
    pub fn folder(&mut self, path: &Path, mode: u32, owner: Option<Owner>) {
        self.folders.push((path.to_owned(), mode, owner));
    }

    /// A file's new content. An existing file keeps its owner; `mode` is for a new one, and an
    /// existing one keeps what it has of it.
    pub fn write(&mut self, path: &Path, bytes: impl Into<Vec<u8>>, mode: u32, owner: Option<Owner>) {
        self.files.push(NewFile { path: path.to_owned(), bytes: Zeroizing::new(bytes.into()), mode, owner });
    }

    /// Removes a file, or a folder with all in it.
    pub fn remove(&mut self, path: &Path) {
        self.removals.push(path.to_owned());
    }

    /// What a file is going to have in it, as text, if this changes it.
    pub fn content(&self, path: &Path) -> Option<String> {
        let file = self.files.iter().rfind(|file| file.path == path)?;
        Some(String::from_utf8_lossy(&file.bytes).into_owned())
    }

    pub fn is_empty(&self) -> bool {
        self.folders.is_empty() && self.files.is_empty() && self.removals.is_empty()
    }

    pub fn commit(self) -> Result<(), FileError> {
        self.commit_while(&mut || true)
    }

    /// `go_on` is asked before every step; where it says no, the process might as well have died.
    fn commit_while(self, go_on: &mut dyn FnMut() -> bool) -> Result<(), FileError> {
        for (path, mode, owner) in &self.folders {
            if !go_on() {
                return Ok(());
            }
            make_folder(path, *mode, *owner)?;
        }
        let journal = self.anchor.join(JOURNAL);
        match self.stage(&journal, go_on) {
            Ok(true) => {}
            Ok(false) => return Ok(()),
            Err(error) => {
                // Nothing happened yet: leave nothing behind.
                self.files.iter().for_each(|file| drop(fs::remove_file(staged_path(&file.path))));
                drop(fs::remove_file(staged_path(&journal)));
                return Err(error);
            }
        }
        if !go_on() {
            return Ok(());
        }
        // The commit. From here on nothing is undone: `recover` finishes it.
        fs::rename(staged_path(&journal), &journal).map_err(io_error("write", &journal))?;
        sync_folder(&self.anchor)?;
        let folders: Vec<&Path> = self.files.iter().filter_map(|file| file.path.parent()).collect();
        let removals = self.removals.iter().filter_map(|path| path.parent());
        finish(&self.anchor, &folders.into_iter().chain(removals).collect::<Vec<_>>(), go_on)
    }

    fn stage(&self, path: &Path, go_on: &mut dyn FnMut() -> bool) -> Result<bool, FileError> {
        for file in &self.files {
            if !go_on() {
                return Ok(false);
            }
            stage_file(&file.path, &file.bytes, file.mode, file.owner)?;
        }
        let base = base_of(&self.anchor);
        let relative = |path: &Path| {
            let path = plain(path);
            path.strip_prefix(&base).map(Path::to_path_buf).unwrap_or(path)
        };
        let journal = Journal {
            files: self.files.iter().map(|file| relative(&file.path)).collect(),
            removals: self.removals.iter().map(|path| relative(path)).collect(),
        };
        let text = serde_json::to_vec(&journal).expect("plain data");
        if !go_on() {
            return Ok(false);
        }
        stage_file(path, &text, 0o600, None)?;
        for folder in self.files.iter().filter_map(|file| file.path.parent()) {
            sync_folder(folder)?;
        }
        Ok(true)
    }
}

/// Replaces one file's content, whole or not at all.
pub fn replace(path: &Path, bytes: &[u8], mode: u32) -> Result<(), FileError> {
    stage_file(path, bytes, mode, None)?;
    let staged = staged_path(path);
    fs::rename(&staged, path).map_err(|error| {
        // It may be a secret.
        drop(fs::remove_file(&staged));
        io_error("write", path)(error)
    })?;
    sync_folder(path.parent().unwrap_or(Path::new(".")))
}

/// Makes a folder with files in it, whole or not at all; `path` must not exist. Names with contents
/// and modes.
pub fn write_folder(
    path: &Path,
    files: &[(impl AsRef<Path>, Zeroizing<Vec<u8>>, u32)],
    owner: Option<Owner>,
) -> Result<(), FileError> {
    let staged = staged_path(path);
    match fs::remove_dir_all(&staged) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(io_error("replace", &staged)(error)),
        _ => {}
    }
    make_folder(&staged, 0o700, owner)?;
    for (name, bytes, mode) in files {
        let file = staged.join(name);
        stage_file(&file, bytes, *mode, owner)?;
        fs::rename(staged_path(&file), &file).map_err(io_error("write", &file))?;
    }
    sync_folder(&staged)?;
    fs::rename(&staged, path).map_err(io_error("write", path))?;
    sync_folder(path.parent().unwrap_or(Path::new(".")))
}

/// What [`recover`] found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Recovery {
    Nothing,
    /// An interrupted change was committed: it is finished now.
    Finished,
    /// An interrupted change was not committed: its staged files are removed.
    Undone,
}

/// Mends what an interrupted [`Transaction`] left, in `anchor` and in `folders` and theirs. A journal
/// is obeyed only if it is the caller's own and names nothing outside these folders.
pub fn recover(anchor: &Path, folders: &[&Path]) -> Result<Recovery, FileError> {
    if is_half_made(anchor) {
        finish(anchor, folders, &mut || true)?;
        return Ok(Recovery::Finished);
    }
    let mut found = false;
    let base = base_of(anchor);
    for folder in folders {
        // Somebody else's folders are not looked through.
        let depth = if plain(folder).starts_with(&base) { 3 } else { 0 };
        found |= remove_staged(folder, depth)?;
    }
    Ok(if found { Recovery::Undone } else { Recovery::Nothing })
}

/// Whether a change was interrupted half-way: `serve` refuses such a site.
pub fn is_half_made(anchor: &Path) -> bool {
    fs::symlink_metadata(anchor.join(JOURNAL)).is_ok()
}

/// Where a journal's relative paths begin: the folder that the anchor is in.
fn base_of(anchor: &Path) -> PathBuf {
    let anchor = plain(anchor);
    anchor.parent().map(Path::to_path_buf).unwrap_or(anchor)
}

/// Absolute, and without `.` and `..`.
fn plain(path: &Path) -> PathBuf {
    use std::path::Component;
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let mut plain = PathBuf::new();
    for component in absolute.components() {
        match component {
            Component::ParentDir => drop(plain.pop()),
            other => plain.push(other),
        }
    }
    plain
}

fn read_journal(path: &Path, base: &Path, folders: &[&Path]) -> Result<Journal, FileError> {
    let refused = |what: String| FileError::Content { path: path.to_owned(), what };
    let mut file = OpenOptions::new().read(true).custom_flags(NOFOLLOW).open(path).map_err(io_error("read", path))?;
    let metadata = file.metadata().map_err(io_error("read", path))?;
    if !metadata.is_file() || metadata.uid() != rustix::process::geteuid().as_raw() {
        return Err(refused("this interrupted change is another user's: mend it as that user".to_owned()));
    }
    let mut bytes = Vec::new();
    Read::by_ref(&mut file).take(READ_MAX).read_to_end(&mut bytes).map_err(io_error("read", path))?;
    let journal: Journal = serde_json::from_slice(&bytes).map_err(|error| refused(error.to_string()))?;
    let within = |named: &PathBuf| {
        let is_plain = named.components().all(|part| !matches!(part, std::path::Component::ParentDir));
        is_plain && folders.iter().any(|folder| base.join(named).starts_with(plain(folder)))
    };
    match journal.files.iter().chain(&journal.removals).find(|named| !within(named)) {
        Some(stray) => Err(refused(format!("it names {}, which is not this site's", stray.display()))),
        None => Ok(journal),
    }
}

fn finish(anchor: &Path, folders: &[&Path], go_on: &mut dyn FnMut() -> bool) -> Result<(), FileError> {
    let path = anchor.join(JOURNAL);
    let base = &base_of(anchor);
    let journal = read_journal(&path, base, folders)?;
    for file in &journal.files {
        if !go_on() {
            return Ok(());
        }
        let target = base.join(file);
        let staged = staged_path(&target);
        // Not there: it was renamed before the interruption.
        if staged.exists() {
            fs::rename(&staged, &target).map_err(io_error("write", &target))?;
            sync_folder(target.parent().unwrap_or(base))?;
        }
    }
    for removal in &journal.removals {
        if !go_on() {
            return Ok(());
        }
        let target = base.join(removal);
        let removed = if target.is_dir() { fs::remove_dir_all(&target) } else { fs::remove_file(&target) };
        match removed {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(io_error("remove", &target)(error)),
            _ => sync_folder(target.parent().unwrap_or(base))?,
        }
    }
    if !go_on() {
        return Ok(());
    }
    fs::remove_file(&path).map_err(io_error("remove", &path))?;
    sync_folder(anchor)
}

fn staged_path(path: &Path) -> PathBuf {
    let mut name = OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(STAGED);
    path.with_file_name(name)
}

fn remove_staged(folder: &Path, depth: u32) -> Result<bool, FileError> {
    let mut found = false;
    let Ok(entries) = fs::read_dir(folder) else { return Ok(false) };
    for entry in entries.flatten() {
        let path = entry.path();
        let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
        if is_folder && depth > 0 {
            found |= remove_staged(&path, depth - 1)?;
        } else if entry.file_name().to_string_lossy().ends_with(STAGED) {
            fs::remove_file(&path).map_err(io_error("remove", &path))?;
            found = true;
        }
    }
    Ok(found)
}

fn make_folder(path: &Path, mode: u32, owner: Option<Owner>) -> Result<(), FileError> {
    if path.is_dir() {
        return Ok(());
    }
    if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty() && !parent.exists()) {
        make_folder(parent, 0o755, None)?;
    }
    use std::os::unix::fs::DirBuilderExt;
    let made = fs::DirBuilder::new().mode(mode).create(path);
    match made {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            return Err(io_error("make the folder", path)(error));
        }
        _ => {}
    }
    // By the open folder: whoever owns the parent could put a link in its place.
    let folder = OpenOptions::new().read(true).custom_flags(NOFOLLOW).open(path).map_err(io_error("open", path))?;
    // The umask may have taken bits away.
    folder.set_permissions(fs::Permissions::from_mode(mode)).map_err(io_error("set the mode of", path))?;
    give(&folder, owner, path)
}

/// Changes an open file's owner; one's own are one's own already.
fn give(file: &File, owner: Option<Owner>, path: &Path) -> Result<(), FileError> {
    let Some(owner) = owner else { return Ok(()) };
    let metadata = file.metadata().map_err(io_error("read", path))?;
    if (metadata.uid(), metadata.gid()) == (owner.uid, owner.gid) {
        return Ok(());
    }
    let (uid, gid) = (rustix::fs::Uid::from_raw(owner.uid), rustix::fs::Gid::from_raw(owner.gid));
    rustix::fs::fchown(file, Some(uid), Some(gid)).map_err(|error| io_error("change the owner of", path)(error.into()))
}

fn stage_file(path: &Path, bytes: &[u8], mode: u32, owner: Option<Owner>) -> Result<(), FileError> {
    let staged = staged_path(path);
    match fs::remove_file(&staged) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(io_error("replace", &staged)(error)),
        _ => {}
    }
    let existing = fs::symlink_metadata(path).ok().filter(fs::Metadata::is_file);
    let (mode, owner) = match (&existing, owner) {
        (Some(old), None) => (old.mode() & 0o7777, Some(Owner { uid: old.uid(), gid: old.gid() })),
        (Some(old), owner) => (old.mode() & 0o7777, owner),
        (None, owner) => (mode, owner),
    };
    let mut file =
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(&staged).map_err(io_error("write", path))?;
    file.write_all(bytes).map_err(io_error("write", path))?;
    // The owner first: a change of owner may clear mode bits.
    give(&file, owner, path)?;
    file.set_permissions(fs::Permissions::from_mode(mode)).map_err(io_error("set the mode of", path))?;
    file.sync_all().map_err(io_error("write", path))
}

fn sync_folder(path: &Path) -> Result<(), FileError> {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    File::open(path).and_then(|folder| folder.sync_all()).map_err(io_error("sync", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn transaction(root: &Path) -> Transaction {
        let mut change = Transaction::new(&root.join("config"));
        change.folder(&root.join("config"), 0o700, None);
        change.folder(&root.join("pki"), 0o700, None);
        change.write(&root.join("config/a"), "new a", 0o600, None);
        change.write(&root.join("pki/b"), "new b", 0o644, None);
        change.remove(&root.join("pki/old"));
        change
    }

    fn state(root: &Path) -> (Option<String>, Option<String>, bool) {
        let read = |path: &str| fs::read_to_string(root.join(path)).ok();
        (read("config/a"), read("pki/b"), root.join("pki/old").exists())
    }

    #[test]
    fn killed_at_any_step_the_site_is_old_or_new() {
        let old = (Some("old a".to_owned()), None, true);
        let new = (Some("new a".to_owned()), Some("new b".to_owned()), false);
        let mut outcomes = Vec::new();
        for steps in 0..20 {
            let folder = tempfile::tempdir().unwrap();
            let root = folder.path();
            fs::create_dir_all(root.join("config")).unwrap();
            fs::create_dir_all(root.join("pki/old")).unwrap();
            fs::write(root.join("config/a"), "old a").unwrap();
            fs::write(root.join("pki/old/x"), "x").unwrap();
            let mut left = steps;
            transaction(root)
                .commit_while(&mut || {
                    left -= 1;
                    left >= 0
                })
                .unwrap();
            let half_made = is_half_made(&root.join("config"));
            let recovery = recover(&root.join("config"), &[&root.join("config"), &root.join("pki")]).unwrap();
            let after = state(root);
            assert!(after == old || after == new, "after {steps} steps: {after:?}");
            assert_eq!(half_made, recovery == Recovery::Finished);
            assert_eq!(recover(&root.join("config"), &[root]).unwrap(), Recovery::Nothing);
            outcomes.push((after == new, recovery));
        }
        // The old state comes first, the new one last, and both ways of mending were seen.
        assert!(outcomes.windows(2).all(|pair| pair[0].0 <= pair[1].0), "{outcomes:?}");
        for wanted in [(false, Recovery::Undone), (true, Recovery::Finished), (true, Recovery::Nothing)] {
            assert!(outcomes.contains(&wanted), "{wanted:?}");
        }
    }

    #[test]
    fn a_journal_that_names_what_is_not_the_sites_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        fs::create_dir(root.join("config")).unwrap();
        fs::write(root.join("victim"), "x").unwrap();
        for named in [root.join("victim").display().to_string(), "../victim".to_owned(), "config/../victim".to_owned()]
        {
            let journal = format!("{{\"files\":[],\"removals\":[{named:?}]}}");
            fs::write(root.join("config/.lockgate-journal"), journal).unwrap();
            let error = recover(&root.join("config"), &[&root.join("config")]).unwrap_err().to_string();
            assert!(error.contains("which is not this site's"), "{error}");
            assert!(root.join("victim").exists());
        }
    }

    #[test]
    fn files_elsewhere_are_changed_too_and_mended_where_their_folders_are_known() {
        let folder = tempfile::tempdir().unwrap();
        let (site, elsewhere) = (folder.path().join("site"), folder.path().join("tls"));
        for made in [site.join("config"), elsewhere.clone()] {
            fs::create_dir_all(made).unwrap();
        }
        for steps in 0..12 {
            // By a way that goes up and down again.
            let outside = site.join("config/../../tls/server.crt");
            let mut change = Transaction::new(&site.join("config"));
            change.write(&outside, format!("{steps}"), 0o644, None);
            change.write(&site.join("config/a"), format!("{steps}"), 0o600, None);
            let mut left = steps;
            change
                .commit_while(&mut || {
                    left -= 1;
                    left >= 0
                })
                .unwrap();
            recover(&site.join("config"), &[&site.join("config"), &elsewhere]).unwrap();
            let read = |path: &Path| fs::read_to_string(path).unwrap_or_default();
            assert_eq!(read(&elsewhere.join("server.crt")), read(&site.join("config/a")), "{steps}");
            assert_eq!(fs::read_dir(&elsewhere).unwrap().count(), usize::from(steps >= 4), "{steps}");
        }
    }

    #[test]
    fn a_failure_while_staging_leaves_nothing_behind() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        let mut change = transaction(root);
        change.write(&root.join("missing/c"), "c", 0o600, None);
        assert!(change.commit().is_err());
        assert_eq!(state(root), (None, None, false));
        assert_eq!(recover(&root.join("config"), &[root]).unwrap(), Recovery::Nothing);
    }

    #[test]
    fn modes_are_as_asked_for_and_kept() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        transaction(root).commit().unwrap();
        let mode = |path: &str| fs::metadata(root.join(path)).unwrap().mode() & 0o777;
        assert_eq!((mode("config"), mode("config/a"), mode("pki/b")), (0o700, 0o600, 0o644));
        fs::set_permissions(root.join("config/a"), fs::Permissions::from_mode(0o640)).unwrap();
        transaction(root).commit().unwrap();
        assert_eq!(mode("config/a"), 0o640);
    }

    #[test]
    fn a_key_that_others_can_read_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        fs::write(&path, "key").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        let error = read_secret(&path).unwrap_err().to_string();
        assert!(error.contains("chmod 600") && error.contains("0644"), "{error}");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        assert_eq!(&*read_secret(&path).unwrap(), b"key");
    }
}
