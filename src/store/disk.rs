//! The files under the store: the real ones, and some in memory that can fail and lose power.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// One flat folder of files.
pub trait Disk: Send {
    type File: DiskFile;

    fn list(&self) -> io::Result<Vec<String>>;
    /// A new file of `len` bytes that are zero and have their room on the disk.
    fn create(&mut self, name: &str, len: u64) -> io::Result<Self::File>;
    fn open(&self, name: &str) -> io::Result<Self::File>;
    fn rename(&mut self, from: &str, to: &str) -> io::Result<()>;
    fn remove(&mut self, name: &str) -> io::Result<()>;
    /// Makes what was created, renamed and removed durable.
    fn sync_folder(&mut self) -> io::Result<()>;
    /// Keeps `bytes` as a file apart, for a person to look at.
    fn set_aside(&mut self, name: &str, bytes: &[u8]) -> io::Result<()>;
}

pub trait DiskFile: Send {
    fn size(&self) -> io::Result<u64>;
    /// Reads as much as there is, up to the buffer's length.
    fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<usize>;
    fn write_at(&mut self, bytes: &[u8], at: u64) -> io::Result<()>;
    /// Makes what was written durable.
    fn sync(&mut self) -> io::Result<()>;
    fn set_len(&mut self, len: u64) -> io::Result<()>;

    /// Everything from `at` on. What the disk cannot read any more is zeros: the checks of frames find it.
    fn read_from(&self, at: u64) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; self.size()?.saturating_sub(at) as usize];
        match self.read_at(&mut bytes, at) {
            Ok(count) => bytes.truncate(count),
            Err(_) => {
                // As the disk has them: one bad sector is not to take its neighbours along.
                let mut from = 0;
                while from < bytes.len() {
                    let to = bytes.len().min(from + PIECE - (at as usize + from) % PIECE);
                    if self.read_at(&mut bytes[from..to], at + from as u64).is_err() {
                        bytes[from..to].fill(0);
                    }
                    from = to;
                }
            }
        }
        Ok(bytes)
    }
}

/// What of a file is tried apart when not all of it can be read.
const PIECE: usize = 4096;

/// A folder of the file system; 0700, its files 0600.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
}

/// Where what is damaged goes, inside the folder.
const DAMAGED: &str = "damaged";

impl Folder {
    /// Makes the folder if it is not there.
    pub fn new(path: &Path) -> io::Result<Folder> {
        use std::os::unix::fs::DirBuilderExt;
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path)?;
        Ok(Folder { path: path.to_owned() })
    }

    pub(super) fn options() -> OpenOptions {
        let mut options = OpenOptions::new();
        options.read(true).write(true).mode(0o600);
        options
    }
}

/// The files in a folder, in the order of their names.
pub(super) fn file_names(folder: &Path) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        if let (true, Ok(name)) = (entry.file_type()?.is_file(), entry.file_name().into_string()) {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

impl Disk for Folder {
    type File = File;

    fn list(&self) -> io::Result<Vec<String>> {
        file_names(&self.path)
    }

    fn create(&mut self, name: &str, len: u64) -> io::Result<File> {
        let path = self.path.join(name);
        let file = Folder::options().create_new(true).open(&path)?;
        let made = match rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, len) {
            // Some file systems cannot reserve: then a full disk shows at the write.
            Err(rustix::io::Errno::OPNOTSUPP) => file.set_len(len),
            other => other.map_err(io::Error::from),
        };
        if let Err(error) = made {
            drop(file);
            let _ = std::fs::remove_file(&path);
            return Err(error);
        }
        Ok(file)
    }

    fn open(&self, name: &str) -> io::Result<File> {
        let path = self.path.join(name);
        // What was made read-only can still be read.
        Folder::options().open(&path).or_else(|_| File::open(&path))
    }

    fn rename(&mut self, from: &str, to: &str) -> io::Result<()> {
        std::fs::rename(self.path.join(from), self.path.join(to))
    }

    fn remove(&mut self, name: &str) -> io::Result<()> {
        std::fs::remove_file(self.path.join(name))
    }

    fn sync_folder(&mut self) -> io::Result<()> {
        File::open(&self.path)?.sync_all()
    }

    fn set_aside(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        use std::io::Write;
        let folder = self.path.join(DAMAGED);
        Folder::new(&folder)?;
        let mut file = Folder::options().create(true).truncate(true).open(folder.join(name))?;
        file.write_all(bytes)?;
        file.sync_all()
    }
}

impl DiskFile for File {
    fn size(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<usize> {
        let mut count = 0;
        while count < buffer.len() {
            match FileExt::read_at(self, &mut buffer[count..], at + count as u64) {
                Ok(0) => break,
                Ok(more) => count += more,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(count)
    }

    fn write_at(&mut self, bytes: &[u8], at: u64) -> io::Result<()> {
        self.write_all_at(bytes, at)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.sync_data()
    }

    fn set_len(&mut self, len: u64) -> io::Result<()> {
        File::set_len(self, len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file of which one sector cannot be read.
    struct Worn {
        bytes: Vec<u8>,
    }

    const BAD: std::ops::Range<usize> = 2 * PIECE..3 * PIECE;

    impl DiskFile for Worn {
        fn size(&self) -> io::Result<u64> {
            Ok(self.bytes.len() as u64)
        }

        fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<usize> {
            let (from, to) = (at as usize, self.bytes.len().min(at as usize + buffer.len()));
            if from < BAD.end && to > BAD.start {
                return Err(io::Error::other("a bad sector"));
            }
            buffer[..to - from].copy_from_slice(&self.bytes[from..to]);
            Ok(to - from)
        }

        fn write_at(&mut self, _: &[u8], _: u64) -> io::Result<()> {
            Ok(())
        }

        fn sync(&mut self) -> io::Result<()> {
            Ok(())
        }

        fn set_len(&mut self, _: u64) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_sector_that_cannot_be_read_takes_no_other_along() {
        let file = Worn { bytes: vec![7; 5 * PIECE + 11] };
        for at in [0, 32, PIECE + 1, 2 * PIECE] {
            let bytes = file.read_from(at as u64).unwrap();
            assert_eq!(bytes.len(), file.bytes.len() - at);
            let is_right = |(number, byte): (usize, &u8)| (*byte == 7) != BAD.contains(&(at + number));
            assert!(bytes.iter().enumerate().all(is_right), "from {at}");
        }
    }
}
