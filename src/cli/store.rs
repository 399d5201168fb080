//! `lockgate store`: what the broker keeps, looked at, copied and put back.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use indicatif::ProgressBar;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use zeroize::Zeroizing;

use super::site::Files;
use super::{Failure, SiteArguments, ask, sealed, site};
use crate::admin::{self, CallError, DataLock, api};
use crate::config::Settings;
use crate::store::{self, Copied, Engine, Frozen, Manifest, Recovery};

#[derive(Args)]
#[command(
    after_help = "Examples:\n  lockgate store check\n  lockgate store backup /var/backups/lockgate-monday --site\n  lockgate store restore /var/backups/lockgate-monday"
)]
pub(super) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Read everything that is kept, and say whether it is sound
    #[command(after_help = "Example:\n  lockgate store check")]
    Check(Look),
    /// Say how much is kept, and what keeping it has cost
    #[command(after_help = "Example:\n  lockgate store stats --json")]
    Stats(Look),
    /// Copy what is kept to a new folder, also while the broker runs
    Backup(Backup),
    /// Put a backup back where nothing is kept
    Restore(Restore),
}

#[derive(Args)]
struct Look {
    /// As JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    site: SiteArguments,
}

#[derive(Args)]
#[command(after_help = "Example:\n  lockgate store backup /var/backups/lockgate-monday --site")]
struct Backup {
    /// A folder that is not there, or empty
    #[arg(value_name = "DIR")]
    to: PathBuf,
    /// Copy configuration, passwords, certificates and keys too, sealed with a passphrase
    #[arg(long = "site")]
    whole_site: bool,
    #[command(flatten)]
    passphrase: Passphrase,
    #[command(flatten)]
    site: SiteArguments,
}

#[derive(Args)]
#[command(
    after_help = "Examples:\n  lockgate store restore /var/backups/lockgate-monday\n  lockgate store restore /var/backups/lockgate-monday --site --dir /srv/broker"
)]
struct Restore {
    /// What `lockgate store backup` made
    #[arg(value_name = "DIR")]
    from: PathBuf,
    /// Put configuration and keys back too, into the site's folder (--dir; here without)
    #[arg(long = "site")]
    whole_site: bool,
    #[command(flatten)]
    passphrase: Passphrase,
    #[command(flatten)]
    site: SiteArguments,
}

#[derive(Args)]
struct Passphrase {
    /// Read the passphrase from this file's first line, in place of asking for it
    #[arg(long, value_name = "FILE", conflicts_with = "passphrase_stdin")]
    passphrase_file: Option<PathBuf>,
    /// Read the passphrase from standard input's first line
    #[arg(long)]
    passphrase_stdin: bool,
}

impl Passphrase {
    fn get(&self, is_new: bool) -> Result<Zeroizing<String>, Failure> {
        if self.passphrase_stdin || self.passphrase_file.is_some() {
            return ask::one_password(self.passphrase_file.as_deref());
        }
        match ask::is_interactive() {
            true => ask::passphrase("Passphrase:", is_new.then_some("without it nobody opens the backup")),
            false => Err(Failure::configuration(
                "a passphrase is needed and there is no terminal to ask for it: use --passphrase-file FILE or \
                 --passphrase-stdin",
            )),
        }
    }
}

pub(super) fn run(arguments: Arguments) -> Result<(), Failure> {
    match arguments.command {
        Command::Check(look) => check(&look),
        Command::Stats(look) => stats(&look),
        Command::Backup(backup) => self::backup(&backup),
        Command::Restore(restore) => self::restore(&restore),
    }
}

/// The files of a store that stay as they are while this lives.
enum Still {
    /// A broker runs on them and keeps these as they are, until it is told that nobody looks any more.
    Held(Box<Hold>),
    /// Nobody runs on them.
    Stopped { _lock: DataLock },
}

/// What a running broker keeps for us.
struct Hold {
    held: api::Held,
    settings: Settings,
    is_over: bool,
}

impl Hold {
    fn release(&mut self) -> Result<api::Released, CallError> {
        self.is_over = true;
        site::ask(&self.settings, "/store/release", Some(&api::Release { number: self.held.number }))
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        if !self.is_over {
            let _ = self.release();
        }
    }
}

impl Still {
    fn of(settings: &Settings) -> Result<Still, Failure> {
        match site::ask::<api::Held>(settings, "/store/hold", Some(&())) {
            Ok(held) => Ok(Still::Held(Box::new(Hold { held, settings: settings.clone(), is_over: false }))),
            Err(CallError::NotRunning(_)) => {
                if !settings.store().is_dir() {
                    return Err(Failure::new(format!("nothing is kept in {}", settings.store().display())));
                }
                Ok(Still::Stopped { _lock: admin::lock_data(&settings.data).map_err(Failure::new)? })
            }
            Err(error) => Err(Failure::new(error)),
        }
    }

    fn held(&self) -> Option<Vec<(String, u64)>> {
        match self {
            Still::Held(hold) => Some(hold.held.files.clone()),
            Still::Stopped { .. } => None,
        }
    }

    /// Lets go of them; an error if they could not be kept as they were for so long.
    fn release(self) -> Result<(), Failure> {
        let Still::Held(mut hold) = self else { return Ok(()) };
        match hold.release().map_err(Failure::new)?.was_held {
            true => Ok(()),
            false => Err(Failure::new("it took so long that the broker could not wait: try again")),
        }
    }
}

fn look(settings: &Settings, still: &Still) -> Result<(Engine<Frozen>, Recovery), Failure> {
    store::look(&settings.store(), still.held()).map_err(|error| {
        let hint = if settings.store().is_dir() { "" } else { " (is `data:` right?)" };
        Failure::new(format!("{}: {error}{hint}", settings.store().display()))
    })
}

fn check(arguments: &Look) -> Result<(), Failure> {
    let settings = site::load(&arguments.site)?;
    let still = Still::of(&settings)?;
    let (mut engine, recovery) = look(&settings, &still)?;
    let progress = ProgressBar::no_length();
    let unreadable = engine.check_bodies(|done, all| show(&progress, done as u64, all as u64));
    progress.finish_and_clear();
    still.release()?;
    let stats = engine.stats();
    let damages: Vec<String> = recovery.damages.iter().map(ToString::to_string).collect();
    let is_sound = damages.is_empty() && unreadable.is_empty() && recovery.commits_missing == 0;
    if arguments.json {
        let found = serde_json::json!({
            "sound": is_sound,
            "sessions": stats.sessions,
            "queued-messages": stats.queued,
            "retained-messages": stats.retained,
            "damages": damages,
            "unreadable-messages": unreadable,
            "commits-missing": recovery.commits_missing,
            "messages-lost": recovery.messages_lost,
            "torn": recovery.torn.as_ref().map(ToString::to_string),
        });
        say!("{found:#}");
    } else {
        say!(
            "{}: {} sessions, {} queued and {} retained messages in {} segments",
            settings.store().display(),
            stats.sessions,
            stats.queued,
            stats.retained,
            stats.segments
        );
        for damage in &damages {
            say!("  damaged: {damage}");
        }
        for (segment, count) in &unreadable {
            say!("  damaged: {segment} has {count} messages that cannot be read");
        }
        if recovery.commits_missing > 0 {
            say!("  missing: {} commits, and with them {} messages", recovery.commits_missing, recovery.messages_lost);
        }
        if let Some(torn) = &recovery.torn {
            say!("  note: the last commit was cut short, as it seems ({torn}): nobody was told that it was safe");
        }
    }
    match is_sound {
        true if arguments.json => Ok(()),
        true => {
            say!("  all of it is sound");
            Ok(())
        }
        false => Err(Failure::new("the store is damaged: the next start keeps what is sound and sets the rest aside")),
    }
}

fn stats(arguments: &Look) -> Result<(), Failure> {
    let settings = site::load(&arguments.site)?;
    let stats = match site::ask::<api::Store>(&settings, "/store", None::<&()>) {
        Ok(stats) => stats,
        Err(CallError::NotRunning(_)) => {
            let still = Still::of(&settings)?;
            let (engine, _) = look(&settings, &still)?;
            still.release()?;
            api::Store::of(&settings.durability.to_string(), &engine.stats())
        }
        Err(error) => return Err(Failure::new(error)),
    };
    if arguments.json {
        say!("{}", serde_json::to_string_pretty(&stats).map_err(Failure::new)?);
        return Ok(());
    }
    say!("{} (durability: {})", settings.store().display(), stats.durability);
    say!(
        "  keeps:    {} sessions, {} queued and {} retained messages",
        stats.sessions,
        stats.queued_messages,
        stats.retained_messages
    );
    say!(
        "  on disk:  {} in {} segments, {} of it messages that are waited for",
        bytes(stats.disk_bytes),
        stats.segments,
        bytes(stats.live_bytes)
    );
    if stats.commits > 0 {
        say!(
            "  written:  {} since the start, {} commits with {} messages ({:.0} bytes a message), {} checkpoints",
            bytes(stats.bytes_written),
            stats.commits,
            stats.messages,
            stats.bytes_per_message(),
            stats.checkpoints
        );
    }
    if stats.failures > 0 {
        say!("  failures: {}{}", stats.failures, if stats.failing { ", and it cannot be written now" } else { "" });
    }
    Ok(())
}

fn show(progress: &ProgressBar, done: u64, all: u64) {
    progress.set_length(all);
    progress.set_position(done);
}

/// For people: with a unit.
pub(super) fn bytes(count: u64) -> String {
    match count {
        0..10_000 => format!("{count} bytes"),
        10_000..10_000_000 => format!("{:.1} KiB", count as f64 / 1024.0),
        _ => format!("{:.1} MiB", count as f64 / 1_048_576.0),
    }
}

fn backup(arguments: &Backup) -> Result<(), Failure> {
    let settings = site::load(&arguments.site)?;
    let to = &arguments.to;
    // Before anything is copied: it may have to be asked for.
    let passphrase = arguments.whole_site.then(|| arguments.passphrase.get(true)).transpose()?;
    let was_there = to.is_dir();
    let is_empty = std::fs::read_dir(to).is_ok_and(|mut entries| entries.next().is_none());
    if to.exists() && !is_empty {
        return Err(Failure::new(format!("{} is not empty: a backup is a folder of its own", to.display())));
    }
    let done = make_backup(&settings, to, passphrase.as_ref().map(|passphrase| passphrase.as_str()));
    if done.is_err() {
        // Half a backup is none.
        let _ = std::fs::remove_dir_all(to);
        if was_there {
            let _ = std::fs::create_dir(to);
        }
    }
    let manifest = done?;
    let size: u64 = manifest.files.iter().chain(&manifest.site).map(|file| file.bytes).sum();
    say!(
        "{}: {} sessions, {} queued and {} retained messages, {}",
        to.display(),
        manifest.sessions,
        manifest.queued_messages,
        manifest.retained_messages,
        bytes(size)
    );
    match manifest.site {
        Some(_) => {
            say!("  with configuration and keys, sealed: without the passphrase they cannot be had back");
            for path in elsewhere(&settings) {
                say!("  note: {} lies outside and is not in it", path.display());
            }
        }
        None => say!("  without configuration and keys (--site takes them along)"),
    }
    Ok(())
}

fn make_backup(settings: &Settings, to: &Path, passphrase: Option<&str>) -> Result<Manifest, Failure> {
    use std::os::unix::fs::DirBuilderExt;
    let still = Still::of(settings)?;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(to)
        .map_err(|error| Failure::new(format!("{}: {error}", to.display())))?;
    let now = OffsetDateTime::now_utc();
    let made = now.replace_nanosecond(0).unwrap_or(now).format(&Rfc3339).unwrap_or_default();
    let progress = ProgressBar::no_length();
    let copied = store::copy(&settings.store(), still.held(), to, made, |done, all| show(&progress, done, all));
    progress.finish_and_clear();
    let released = still.release();
    let mut manifest = copied.map_err(Failure::new)?;
    released?;
    if let Some(passphrase) = passphrase {
        manifest.site = Some(seal_site(settings, to, passphrase)?);
    }
    store::write_manifest(to, &manifest).map_err(Failure::new)?;
    Ok(manifest)
}

const SEALED: &str = "site.sealed";

/// Configuration and keys, as one sealed archive.
fn seal_site(settings: &Settings, to: &Path, passphrase: &str) -> Result<Copied, Failure> {
    let mut archive = tar::Builder::new(Vec::new());
    let folder = match settings.folder() {
        folder if folder.as_os_str().is_empty() => PathBuf::from("."),
        folder => folder,
    };
    for (name, folder) in [("config", &folder), ("pki", &settings.pki)] {
        if folder.is_dir() {
            append(&mut archive, Path::new(name), folder, &[&settings.data, to])
                .map_err(|error| Failure::new(format!("cannot read {}: {error}", folder.display())))?;
        }
    }
    let plain = Zeroizing::new(archive.into_inner().map_err(Failure::new)?);
    let sealed = sealed::seal(passphrase, plain);
    let path = to.join(SEALED);
    let temporary = to.join("site.sealed.new");
    let written =
        std::fs::write(&temporary, &sealed).map_err(|error| Failure::new(format!("{}: {error}", path.display())));
    written?;
    let copied = store::copy_file(&temporary, &path, sealed.len() as u64).map_err(Failure::new)?;
    std::fs::remove_file(&temporary).map_err(Failure::new)?;
    Ok(copied)
}

/// Appends the files of a folder, and what links of it point to; not what is `without`, nor sockets.
fn append(archive: &mut tar::Builder<Vec<u8>>, name: &Path, folder: &Path, without: &[&Path]) -> std::io::Result<()> {
    archive.append_dir(name, folder)?;
    for entry in std::fs::read_dir(folder)? {
        let (path, name) = {
            let entry = entry?;
            (entry.path(), name.join(entry.file_name()))
        };
        let is_left_out = |left_out: &&Path| {
            let same = left_out.canonicalize().ok().zip(path.canonicalize().ok());
            same.is_some_and(|(left_out, path)| left_out == path)
        };
        let metadata = std::fs::metadata(&path)?;
        if metadata.is_dir() && !without.iter().any(is_left_out) {
            append(archive, &name, &path, without)?;
        } else if metadata.is_file() && !name.ends_with(".lockgate-lock") {
            archive.append_path_with_name(&path, &name)?;
        }
    }
    Ok(())
}

/// Files of the site that lie elsewhere, and are not in a backup of it.
fn elsewhere(settings: &Settings) -> Vec<PathBuf> {
    let folder = settings.folder();
    let named = [&settings.passwords, &settings.acl, &settings.identities].into_iter().flatten();
    let is_elsewhere = |path: &&PathBuf| !path.starts_with(&folder) && !path.starts_with(&settings.pki);
    named.filter(is_elsewhere).cloned().collect()
}

fn restore(arguments: &Restore) -> Result<(), Failure> {
    let from = &arguments.from;
    let manifest = store::read_manifest(from).map_err(Failure::new)?;
    if arguments.whole_site {
        restore_site(arguments, &manifest)?;
    } else if manifest.site.is_some() {
        say!("  note: configuration and keys of the backup stay in it (--site puts them back)");
    }
    let settings = site::load(&arguments.site)?;
    let _lock = admin::lock_data(&settings.data).map_err(Failure::new)?;
    let folder = settings.store();
    if folder.exists() {
        return Err(Failure::new(format!(
            "{} is there: move it away first, what it keeps is not in the backup",
            folder.display()
        )));
    }
    store::restore(from, &manifest, &folder).map_err(Failure::new)?;
    give_away(&folder, &settings);
    say!(
        "{}: {} sessions, {} queued and {} retained messages, as of {}",
        folder.display(),
        manifest.sessions,
        manifest.queued_messages,
        manifest.retained_messages,
        manifest.made
    );
    say!("  start the broker: lockgate serve --config {}", settings.file.display());
    Ok(())
}

/// Made by root, a store belongs to whom the site belongs to.
fn give_away(folder: &Path, settings: &Settings) {
    let Some(owner) = Files::of(settings).owner() else { return };
    let files = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    for path in files.chain([folder.to_owned(), settings.data.clone()]) {
        if let Err(error) = std::os::unix::fs::chown(&path, Some(owner.uid), Some(owner.gid)) {
            say!("  note: {} stays root's: {error}", path.display());
        }
    }
}

fn restore_site(arguments: &Restore, manifest: &Manifest) -> Result<(), Failure> {
    let folder = arguments.site.dir.clone().unwrap_or_else(|| PathBuf::from("."));
    if arguments.site.config.is_some() {
        return Err(Failure::configuration("--site makes a site: name its folder with --dir"));
    }
    let Some(sealed) = &manifest.site else {
        return Err(Failure::new(format!(
            "{} has no configuration and keys: it was made without --site",
            arguments.from.display()
        )));
    };
    for name in ["config", "pki"] {
        let there = folder.join(name);
        if there.exists() {
            return Err(Failure::new(format!("{} is there: a site is put back where there is none", there.display())));
        }
    }
    let path = arguments.from.join(&sealed.name);
    let bytes = std::fs::read(&path).map_err(|error| Failure::new(format!("{}: {error}", path.display())))?;
    let plain = sealed::open(&arguments.passphrase.get(false)?, bytes)?;
    let temporary = folder.join(".lockgate-restore");
    let _ = std::fs::remove_dir_all(&temporary);
    let unpacked = unpack(&plain, &temporary, &folder);
    let _ = std::fs::remove_dir_all(&temporary);
    unpacked.map_err(|error| Failure::new(format!("{}: {error}", folder.display())))
}

fn unpack(plain: &[u8], temporary: &Path, folder: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::create_dir_all(folder)?;
    std::fs::DirBuilder::new().mode(0o700).create(temporary)?;
    let mut archive = tar::Archive::new(plain);
    archive.set_preserve_permissions(true);
    archive.set_preserve_ownerships(rustix::process::geteuid().is_root());
    archive.unpack(temporary)?;
    if temporary.join("pki").exists() {
        std::fs::rename(temporary.join("pki"), folder.join("pki"))?;
    }
    if let Err(error) = std::fs::rename(temporary.join("config"), folder.join("config")) {
        // Half a site is none.
        let _ = std::fs::rename(folder.join("pki"), temporary.join("pki"));
        return Err(error);
    }
    std::fs::File::open(folder)?.sync_all()
}
