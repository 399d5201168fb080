use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use super::disk::{Disk, DiskFile, file_names};

/// A store's files as they are, or were when they were held: to look at, not to change.
#[derive(Debug)]
pub struct Frozen {
    folder: PathBuf,
    /// How much of each counts; `None`: all of all.
    lens: Option<BTreeMap<String, u64>>,
}

/// A file of a [`Frozen`] store.
#[derive(Debug)]
pub struct FrozenFile {
    file: File,
    len: u64,
}

impl Frozen {
    pub fn new(folder: &Path, held: Option<Vec<(String, u64)>>) -> Frozen {
        Frozen { folder: folder.to_owned(), lens: held.map(|held| held.into_iter().collect()) }
    }
}

fn refused() -> io::Error {
    io::Error::new(io::ErrorKind::ReadOnlyFilesystem, "the store is only looked at")
}

impl Disk for Frozen {
    type File = FrozenFile;

    fn list(&self) -> io::Result<Vec<String>> {
        match &self.lens {
            Some(lens) => Ok(lens.keys().cloned().collect()),
            None => file_names(&self.folder),
        }
    }

    fn create(&mut self, _: &str, _: u64) -> io::Result<FrozenFile> {
        Err(refused())
    }

    fn open(&self, name: &str) -> io::Result<FrozenFile> {
        let file = File::open(self.folder.join(name))?;
        let all = file.metadata()?.len();
        let len = self.lens.as_ref().map_or(Some(&all), |lens| lens.get(name)).ok_or(io::ErrorKind::NotFound)?;
        Ok(FrozenFile { file, len: *len.min(&all) })
    }

    fn rename(&mut self, _: &str, _: &str) -> io::Result<()> {
        Err(refused())
    }

    fn remove(&mut self, _: &str) -> io::Result<()> {
        Err(refused())
    }

    fn sync_folder(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn set_aside(&mut self, _: &str, _: &[u8]) -> io::Result<()> {
        Err(refused())
    }
}

impl DiskFile for FrozenFile {
    fn size(&self) -> io::Result<u64> {
        Ok(self.len)
    }

    fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<usize> {
        let most = buffer.len().min(usize::try_from(self.len.saturating_sub(at)).unwrap_or(usize::MAX));
        DiskFile::read_at(&self.file, &mut buffer[..most], at)
    }

    fn write_at(&mut self, _: &[u8], _: u64) -> io::Result<()> {
        Err(refused())
    }

    fn sync(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn set_len(&mut self, _: u64) -> io::Result<()> {
        Err(refused())
    }
}
