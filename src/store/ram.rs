use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use super::disk::{Disk, DiskFile};

/// Files in memory. They know what was synced: a power cut takes the rest, or a part of it; and any
/// call can be made to fail.
#[derive(Clone, Debug, Default)]
pub struct RamDisk {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug, Default)]
struct Inner {
    /// By number, so that a renamed file stays the same to who has it open.
    files: BTreeMap<u64, RamFile>,
    /// As the folder is now, and as it was when it was last synced.
    names: BTreeMap<String, u64>,
    synced_names: BTreeMap<String, u64>,
    next: u64,
    aside: BTreeMap<String, Vec<u8>>,
    /// Calls so far that could have failed.
    calls: u64,
    fails: Option<Failure>,
    capacity: Option<u64>,
    syncs_are_lies: bool,
    cuts: u64,
}

/// Which calls fail.
#[derive(Clone, Copy, Debug)]
struct Failure {
    from: u64,
    until: u64,
}

#[derive(Clone, Debug, Default)]
struct RamFile {
    synced: Vec<u8>,
    now: Vec<u8>,
    /// Writes since the last sync.
    writes: Vec<(u64, Vec<u8>)>,
}

/// An open file of a [`RamDisk`]; of no use after a power cut.
#[derive(Debug)]
pub struct RamHandle {
    disk: RamDisk,
    number: u64,
    cuts: u64,
}

impl RamDisk {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Another disk with the same files.
    pub fn copy(&self) -> RamDisk {
        let inner = self.lock();
        let copy = Inner {
            files: inner.files.clone(),
            names: inner.names.clone(),
            synced_names: inner.synced_names.clone(),
            next: inner.next,
            aside: inner.aside.clone(),
            ..Inner::default()
        };
        RamDisk { inner: Arc::new(Mutex::new(copy)) }
    }

    /// The power goes: what was not synced is gone, or kept where `keep` says so of a sector. Open
    /// files are of no use any more; calls that were to fail do not.
    pub fn cut_power(&self, mut keep: impl FnMut() -> bool) {
        let mut inner = self.lock();
        inner.cuts += 1;
        inner.fails = None;
        for file in inner.files.values_mut() {
            let mut left = std::mem::take(&mut file.synced);
            for (at, bytes) in std::mem::take(&mut file.writes) {
                // Sector by sector.
                for (sector, bytes) in bytes.chunks(512).enumerate() {
                    if keep() {
                        put(&mut left, at + 512 * sector as u64, bytes);
                    }
                }
            }
            file.now.clone_from(&left);
            file.synced = left;
        }
        let names = match keep() {
            true => inner.names.clone(),
            false => inner.synced_names.clone(),
        };
        inner.names.clone_from(&names);
        inner.synced_names = names;
    }

    /// The calls from the `from`th after now on fail, `count` of them.
    pub fn fail(&self, from: u64, count: u64) {
        let mut inner = self.lock();
        let from = inner.calls + from;
        inner.fails = Some(Failure { from, until: from.saturating_add(count) });
    }

    /// The disk has so many bytes from now on.
    pub fn set_capacity(&self, bytes: Option<u64>) {
        self.lock().capacity = bytes;
    }

    /// Syncing does nothing from now on, and says that it did.
    pub fn lie_about_syncing(&self) {
        self.lock().syncs_are_lies = true;
    }

    /// Bytes of all files.
    pub fn used(&self) -> u64 {
        self.lock().used()
    }

    pub fn names(&self) -> Vec<String> {
        self.lock().names.keys().cloned().collect()
    }

    /// Changes a file's bytes behind the store's back.
    pub fn damage(&self, name: &str, change: impl FnOnce(&mut Vec<u8>)) {
        let mut inner = self.lock();
        let number = inner.names[name];
        let file = inner.files.get_mut(&number).expect("a name has its file");
        change(&mut file.now);
        file.synced.clone_from(&file.now);
    }

    /// What was set aside, by name.
    pub fn aside(&self) -> Vec<String> {
        self.lock().aside.keys().cloned().collect()
    }
}

impl Inner {
    fn used(&self) -> u64 {
        self.names.values().map(|number| self.files[number].now.len() as u64).sum()
    }

    fn call(&mut self) -> io::Result<()> {
        self.calls += 1;
        let at = self.calls - 1;
        match self.fails {
            Some(fails) if (fails.from..fails.until).contains(&at) => Err(io::Error::other("made to fail")),
            _ => Ok(()),
        }
    }

    fn room(&self, more: u64) -> io::Result<()> {
        match self.capacity {
            Some(capacity) if self.used() + more > capacity => Err(io::ErrorKind::StorageFull.into()),
            _ => Ok(()),
        }
    }
}

fn put(file: &mut Vec<u8>, at: u64, bytes: &[u8]) {
    let (at, end) = (at as usize, at as usize + bytes.len());
    if file.len() < end {
        file.resize(end, 0);
    }
    file[at..end].copy_from_slice(bytes);
}

impl Disk for RamDisk {
    type File = RamHandle;

    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.names())
    }

    fn create(&mut self, name: &str, len: u64) -> io::Result<RamHandle> {
        let mut inner = self.lock();
        inner.call()?;
        inner.room(len)?;
        if inner.names.contains_key(name) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let number = inner.next;
        inner.next += 1;
        let zeros = vec![0; len as usize];
        inner.files.insert(number, RamFile { synced: zeros.clone(), now: zeros, writes: Vec::new() });
        inner.names.insert(name.to_owned(), number);
        Ok(RamHandle { disk: self.clone(), number, cuts: inner.cuts })
    }

    fn open(&self, name: &str) -> io::Result<RamHandle> {
        let inner = self.lock();
        let number = *inner.names.get(name).ok_or(io::ErrorKind::NotFound)?;
        Ok(RamHandle { disk: self.clone(), number, cuts: inner.cuts })
    }

    fn rename(&mut self, from: &str, to: &str) -> io::Result<()> {
        let mut inner = self.lock();
        inner.call()?;
        let number = inner.names.remove(from).ok_or(io::ErrorKind::NotFound)?;
        inner.names.insert(to.to_owned(), number);
        Ok(())
    }

    fn remove(&mut self, name: &str) -> io::Result<()> {
        let mut inner = self.lock();
        inner.call()?;
        inner.names.remove(name).map(drop).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn sync_folder(&mut self) -> io::Result<()> {
        let mut inner = self.lock();
        inner.call()?;
        if !inner.syncs_are_lies {
            inner.synced_names = inner.names.clone();
            let Inner { files, names, .. } = &mut *inner;
            let kept: std::collections::BTreeSet<u64> = names.values().copied().collect();
            files.retain(|number, _| kept.contains(number));
        }
        Ok(())
    }

    fn set_aside(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        self.lock().aside.insert(name.to_owned(), bytes.to_vec());
        Ok(())
    }
}

impl RamHandle {
    fn with<T>(&self, act: impl FnOnce(&mut Inner, u64) -> io::Result<T>) -> io::Result<T> {
        let mut inner = self.disk.lock();
        if inner.cuts != self.cuts {
            return Err(io::Error::other("the power was cut"));
        }
        if !inner.files.contains_key(&self.number) {
            return Err(io::ErrorKind::NotFound.into());
        }
        act(&mut inner, self.number)
    }
}

impl DiskFile for RamHandle {
    fn size(&self) -> io::Result<u64> {
        self.with(|inner, number| Ok(inner.files[&number].now.len() as u64))
    }

    fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<usize> {
        self.with(|inner, number| {
            let file = &inner.files[&number].now;
            let rest = file.get(at as usize..).unwrap_or_default();
            let count = rest.len().min(buffer.len());
            buffer[..count].copy_from_slice(&rest[..count]);
            Ok(count)
        })
    }

    fn write_at(&mut self, bytes: &[u8], at: u64) -> io::Result<()> {
        self.with(|inner, number| {
            inner.call()?;
            let more = (at + bytes.len() as u64).saturating_sub(inner.files[&number].now.len() as u64);
            inner.room(more)?;
            let file = inner.files.get_mut(&number).expect("looked for above");
            put(&mut file.now, at, bytes);
            file.writes.push((at, bytes.to_vec()));
            Ok(())
        })
    }

    fn sync(&mut self) -> io::Result<()> {
        self.with(|inner, number| {
            inner.call()?;
            if !inner.syncs_are_lies {
                let file = inner.files.get_mut(&number).expect("looked for above");
                // Only what was written: a copy of the whole file each time would be slow.
                for (at, bytes) in std::mem::take(&mut file.writes) {
                    put(&mut file.synced, at, &bytes);
                }
            }
            Ok(())
        })
    }

    fn set_len(&mut self, len: u64) -> io::Result<()> {
        self.with(|inner, number| {
            inner.call()?;
            let file = inner.files.get_mut(&number).expect("looked for above");
            file.now.resize(len as usize, 0);
            // Cut off for good: nothing that matters lies there.
            file.synced.truncate(len as usize);
            file.writes.retain(|(at, bytes)| at + bytes.len() as u64 <= len);
            Ok(())
        })
    }
}
