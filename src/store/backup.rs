//! Copies of a store: made while it runs, put back where there is none.
#![expect(clippy::disallowed_methods, reason = "a copy of files is made of files")]

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::recover::open;
use super::{Clocks, Durability, Engine, Folder, Frozen, OpenError, Recovery, Sizes};

/// The format of [`Manifest`] that this version writes, and the newest that it reads.
const FORMAT: u32 = 1;
const MANIFEST: &str = "backup.json";
const FILES: &str = "store";

/// What a backup has: written last, so that a copy without it is none.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Manifest {
    pub format: u32,
    pub lockgate: String,
    /// RFC 3339.
    pub made: String,
    pub sessions: usize,
    pub queued_messages: u64,
    pub retained_messages: usize,
    /// Another file of the backup, with the site's configuration and keys.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub site: Option<Copied>,
    pub files: Vec<Copied>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Copied {
    pub name: String,
    pub bytes: u64,
    /// Of its bytes, in hexadecimal digits.
    pub sha256: String,
}

/// Why there is no copy.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    #[error("{path}: {error}")]
    Io { path: String, error: io::Error },
    #[error("{0} is no backup: it has no {MANIFEST}")]
    None(String),
    #[error("{0}/{MANIFEST} cannot be read: {1}")]
    Unreadable(String, String),
    #[error("the backup was made by a newer Lockgate ({lockgate}): use that version")]
    Newer { lockgate: String },
    #[error("{0} is damaged: it is not what the backup wrote; use another backup")]
    Damaged(String),
    #[error("the copy is not sound ({0}); nothing was kept of it")]
    Unsound(String),
    #[error(transparent)]
    Open(#[from] OpenError),
}

fn at(path: &Path) -> impl Fn(io::Error) -> BackupError + '_ {
    move |error| BackupError::Io { path: path.display().to_string(), error }
}

/// Looks at a store without changing it: `held` are the files of one that runs.
pub fn look(folder: &Path, held: Option<Vec<(String, u64)>>) -> Result<(Engine<Frozen>, Recovery), OpenError> {
    open(Frozen::new(folder, held), Durability::Off, Sizes::default(), *b"none", Clocks::look())
}

/// Copies the store in `folder` to the folder `to`, which is there and empty, and looks whether the copy
/// is sound. The manifest is for [`write_manifest`].
pub fn copy(
    folder: &Path,
    held: Option<Vec<(String, u64)>>,
    to: &Path,
    made: String,
    mut progress: impl FnMut(u64, u64),
) -> Result<Manifest, BackupError> {
    let names = match held {
        Some(held) => held,
        None => {
            let (engine, _) = look(folder, None)?;
            engine.files()
        }
    };
    let target = to.join(FILES);
    Folder::new(&target).map_err(at(&target))?;
    let total = names.iter().map(|(_, bytes)| bytes).sum();
    let mut done = 0;
    let mut files = Vec::new();
    for (name, bytes) in names {
        let copied = copy_file(&folder.join(&name), &target.join(&name), bytes)?;
        files.push(Copied { name, ..copied });
        done += bytes;
        progress(done, total);
    }
    sync_folder(&target)?;
    let (mut engine, recovery) = look(&target, None)?;
    let unreadable = engine.check_bodies(|_, _| ());
    if let Some(damage) = recovery.damages.first() {
        return Err(BackupError::Unsound(damage.to_string()));
    }
    if let Some((segment, count)) = unreadable.first_key_value() {
        return Err(BackupError::Unsound(format!("{segment} has {count} messages that cannot be read")));
    }
    let stats = engine.stats();
    Ok(Manifest {
        format: FORMAT,
        lockgate: env!("CARGO_PKG_VERSION").to_owned(),
        made,
        sessions: stats.sessions,
        queued_messages: stats.queued,
        retained_messages: stats.retained,
        site: None,
        files,
    })
}

/// Copies the first `bytes` of a file to a new one, and syncs it.
pub fn copy_file(from: &Path, to: &Path, bytes: u64) -> Result<Copied, BackupError> {
    let mut source = File::open(from).map_err(at(from))?.take(bytes);
    let mut target = Folder::options().create_new(true).open(to).map_err(at(to))?;
    let mut digest = Sha256::new();
    let mut buffer = vec![0; 256 * 1024];
    let mut copied = 0;
    loop {
        let count = source.read(&mut buffer).map_err(at(from))?;
        if count == 0 {
            break;
        }
        digest.update(&buffer[..count]);
        target.write_all(&buffer[..count]).map_err(at(to))?;
        copied += count as u64;
    }
    if copied < bytes {
        return Err(at(from)(io::ErrorKind::UnexpectedEof.into()));
    }
    target.sync_all().map_err(at(to))?;
    let name = to.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
    Ok(Copied { name, bytes: copied, sha256: hex(&digest.finalize()) })
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn sync_folder(path: &Path) -> Result<(), BackupError> {
    File::open(path).and_then(|folder| folder.sync_all()).map_err(at(path))
}

/// Says that the backup in `to` is whole.
pub fn write_manifest(to: &Path, manifest: &Manifest) -> Result<(), BackupError> {
    let text = serde_json::to_string_pretty(manifest).expect("texts and numbers");
    let (temporary, path) = (to.join("backup.json.new"), to.join(MANIFEST));
    let mut file = Folder::options().create_new(true).open(&temporary).map_err(at(&temporary))?;
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(at(&temporary))?;
    std::fs::rename(&temporary, &path).map_err(at(&path))?;
    sync_folder(to)
}

/// What a backup says that it has.
pub fn read_manifest(from: &Path) -> Result<Manifest, BackupError> {
    let path = from.join(MANIFEST);
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(BackupError::None(from.display().to_string()));
        }
        Err(error) => return Err(at(&path)(error)),
    };
    let unreadable = |error: serde_json::Error| BackupError::Unreadable(from.display().to_string(), error.to_string());
    let manifest: Manifest = serde_json::from_str(&text).map_err(unreadable)?;
    if manifest.format > FORMAT {
        return Err(BackupError::Newer { lockgate: manifest.lockgate });
    }
    let is_plain = |copied: &Copied| Path::new(&copied.name).file_name() == Some(std::ffi::OsStr::new(&copied.name));
    match manifest.files.iter().chain(&manifest.site).find(|copied| !is_plain(copied)) {
        Some(copied) => Err(BackupError::Damaged(copied.name.clone())),
        None => Ok(manifest),
    }
}

/// Puts a backup's store into `folder`, which is not there: whole, or not at all.
pub fn restore(from: &Path, manifest: &Manifest, folder: &Path) -> Result<(), BackupError> {
    let mut temporary = folder.as_os_str().to_owned();
    temporary.push(".new");
    let temporary = PathBuf::from(temporary);
    // What an interrupted one left.
    match std::fs::remove_dir_all(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(at(&temporary)(error)),
        _ => {}
    }
    Folder::new(&temporary).map_err(at(&temporary))?;
    let filled = fill(from, manifest, &temporary);
    let done = filled.and_then(|()| std::fs::rename(&temporary, folder).map_err(at(folder)));
    if done.is_err() {
        let _ = std::fs::remove_dir_all(&temporary);
    }
    done?;
    folder.parent().map_or(Ok(()), sync_folder)
}

fn fill(from: &Path, manifest: &Manifest, to: &Path) -> Result<(), BackupError> {
    for wanted in &manifest.files {
        let source = from.join(FILES).join(&wanted.name);
        let copied = copy_file(&source, &to.join(&wanted.name), wanted.bytes)?;
        if copied != *wanted {
            return Err(BackupError::Damaged(source.display().to_string()));
        }
    }
    sync_folder(to)?;
    look(to, None).map(drop).map_err(BackupError::from)
}
