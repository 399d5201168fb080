//! Files that a running broker goes by, and whether they have changed: renamed over, as certbot and
//! Kubernetes do it, or written.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use crate::config::Settings;

/// What is looked at, and how it was: `None` where there is no file.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Snapshot(BTreeMap<PathBuf, Option<Stamp>>);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Stamp {
    device: u64,
    inode: u64,
    len: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

/// What has to be read anew.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Changed {
    Nothing,
    /// Passwords, minimum levels or the ledger alone.
    Clients,
    Material,
}

impl Snapshot {
    /// Certificates, keys, CAs, revocation lists, passwords, minimum levels, the ACL and the ledger: not the
    /// configuration, which is put into effect when somebody says so.
    pub(super) fn take(settings: &Settings) -> Snapshot {
        let mut paths: BTreeSet<PathBuf> = clients_files(settings);
        paths.extend(settings.acl_files().cloned());
        paths.insert(settings.ca_certificate());
        for files in settings.tls_files() {
            let all = [&files.certificate, &files.key, &files.client_ca].into_iter();
            paths.extend(all.chain(&files.client_ca_folder).chain(&files.client_crl).cloned());
        }
        let stamp = |path: &PathBuf| {
            let metadata = std::fs::metadata(path).ok()?;
            Some(Stamp {
                device: metadata.dev(),
                inode: metadata.ino(),
                len: metadata.len(),
                modified: (metadata.mtime(), metadata.mtime_nsec()),
                changed: (metadata.ctime(), metadata.ctime_nsec()),
            })
        };
        let stamped = paths.into_iter().map(|path| {
            let stamp = stamp(&path);
            (path, stamp)
        });
        Snapshot(stamped.collect())
    }

    /// Takes note of how the clients' files are now, and of no others.
    pub(super) fn take_clients(&mut self, settings: &Settings) {
        let clients = clients_files(settings);
        self.0.extend(Snapshot::take(settings).0.into_iter().filter(|(path, _)| clients.contains(path)));
    }

    /// What is otherwise than in `before`.
    pub(super) fn changed_since(&self, before: &Snapshot, settings: &Settings) -> Changed {
        let mut changed = self.0.iter().filter(|(path, stamp)| before.0.get(*path) != Some(stamp)).peekable();
        if changed.peek().is_none() {
            return Changed::Nothing;
        }
        let clients = clients_files(settings);
        if changed.all(|(path, _)| clients.contains(path)) { Changed::Clients } else { Changed::Material }
    }
}

fn clients_files(settings: &Settings) -> BTreeSet<PathBuf> {
    settings.password_files().chain(&settings.identities).cloned().chain([settings.ledger()]).collect()
}
