//! Reads what a configuration names: passwords, ACL, identities, the ledger, certificates and
//! keys. All of it is read and checked before any of it is used.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::ServerConfig;
use thiserror::Error;
use time::OffsetDateTime;
use zeroize::Zeroizing;

use super::tickets::Tickets;
use super::tls::TlsLoader;
use crate::auth::{self, Acl, Cost, Directory, DirectoryError, ListenerRules, PasswordHash, PasswordLine};
use crate::config::{ClientCerts, ClientIds, Listener, Pages, Settings, TlsFiles, Transport, WebSocket};
use crate::pki::{self, CertificateInfo, FileError, HostNames, Kind, Ledger, LedgerError};
use crate::types::{CertificateId, Entrance, Identity, Level};

/// Everything read, ready to be used.
pub struct Material {
    pub directory: Arc<Directory>,
    pub acl: Arc<Acl>,
    pub(super) listeners: BTreeMap<String, Arc<ListenerMaterial>>,
    /// Subjects (RFC 2253) of all CAs that the ledger has ever had: what one of them issued is judged by the ledger, be the
    /// CA trusted here or below a root that is, and whatever key identifiers say.
    pub(super) own_issuers: BTreeSet<String>,
    /// What enrolment is served with, where it is.
    pub enrolment: Option<Arc<ServerConfig>>,
    /// Certificates that a list of somebody else's revokes.
    pub revoked: Vec<CertificateId>,
    /// Which revocation list was to be replaced when, of those that listeners go by.
    pub list_ends: Vec<(String, OffsetDateTime)>,
    /// Certificates in use: what for, and what there is to know.
    pub certificates: Vec<(String, CertificateInfo)>,
    /// What is not wrong enough to refuse.
    pub findings: Vec<Finding>,
}

/// What a listener needs to take a connection.
pub(super) struct ListenerMaterial {
    pub(super) rules: ListenerRules,
    pub(super) connections_max: usize,
    pub(super) tls: Option<TlsMaterial>,
    pub(super) websocket: Option<WebSocket>,
    pub(super) pages: Option<Pages>,
    /// A proxy says whose connection it is.
    pub(super) proxied: bool,
    /// Of MQTT 3.1, 3.1.1 and 5.0.
    pub(super) versions: [bool; 3],
    pub(super) client_ids: ClientIds,
    pub(super) entrance: Arc<Entrance>,
}

pub(super) struct TlsMaterial {
    /// For clients that offer the ALPN protocol `mqtt`.
    pub(super) with_alpn: Arc<ServerConfig>,
    /// For those that offer none or others.
    pub(super) without_alpn: Arc<ServerConfig>,
    pub(super) tickets: Arc<Tickets>,
    pub(super) client_certs: ClientCerts,
    pub(super) client_ca: PathBuf,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Severity {
    Warning,
    Note,
}

/// Something that the operator should know.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Finding {
    pub severity: Severity,
    pub what: String,
}

/// All that is wrong.
#[derive(Debug, Error)]
#[error("{}", .0.join("\n"))]
pub struct MaterialError(pub Vec<String>);

impl Material {
    /// Reads everything that `settings` names, or says all that is wrong with it.
    pub fn load(settings: &Settings, host: &HostNames, now: OffsetDateTime) -> Result<Material, MaterialError> {
        let mut problems = Vec::new();
        // A command that is just changing the site takes milliseconds.
        for _ in 0..20 {
            if !pki::is_half_made(&settings.folder()) {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        if pki::is_half_made(&settings.folder()) {
            let folder = settings.folder();
            problems.push(format!(
                "{}: a change was interrupted and this site is half made; run `lockgate init` to mend it",
                folder.display()
            ));
            return Err(MaterialError(problems));
        }
        let mut findings = Vec::new();
        note_permissions(settings, &mut findings);
        if settings.stands_in {
            note_loose(settings, &mut findings);
            unreadable_passwords(settings, &mut findings);
        }
        let acl = read_acl(settings, &mut problems);
        let ledger = read_ledger(settings, &mut problems);
        let own_cas = read_own_cas(settings, settings.ledger().exists(), now, &mut problems);
        let mut own_issuers: BTreeSet<String> = own_cas.iter().map(|ca| ca.subject.clone()).collect();
        if let Some(ledger) = &ledger {
            let cas = ledger.all().filter(|(entry, _)| entry.kind == Kind::Ca);
            own_issuers.extend(cas.map(|(entry, _)| entry.subject.clone()));
        }
        let directory = read_directory(settings, ledger.as_ref(), &mut problems);
        let (mut certificates, mut revoked, mut list_ends) = (Vec::new(), Vec::new(), Vec::new());
        if let Some(ca) = own_cas.first() {
            certificates.push(("ca".to_owned(), ca.clone()));
        }
        let mut listeners = BTreeMap::new();
        for listener in &settings.listeners {
            let name = listener.address.to_string();
            let tls = match &listener.transport {
                Transport::Tls(files) => {
                    let mut loader = TlsLoader {
                        files,
                        stands_in: settings.stands_in,
                        faults: &settings.faults,
                        host,
                        now,
                        own_cas: &own_cas,
                        problems: &mut problems,
                        findings: &mut findings,
                        revoked: &mut revoked,
                        list_ends: &mut list_ends,
                    };
                    let loaded = loader.load();
                    if let Some((_, info)) = &loaded {
                        certificates.push((name.clone(), info.clone()));
                    }
                    loaded.map(|(tls, _)| tls)
                }
                Transport::Tcp | Transport::Unix => None,
            };
            note_openness(listener, &mut findings);
            let material = ListenerMaterial {
                rules: listener.rules,
                connections_max: listener.connections_max,
                tls,
                websocket: listener.websocket.clone(),
                pages: listener.pages.clone(),
                proxied: listener.proxied,
                versions: listener.versions,
                client_ids: listener.client_ids.clone(),
                entrance: listener.entrance.clone(),
            };
            listeners.insert(name, Arc::new(material));
        }
        let enrolment = settings.enrolment.and_then(|_| enrolment(settings, host, now, &own_cas, &mut problems));
        if let (Some(acl), Some(directory)) = (&acl, &directory) {
            note_strangers(settings, acl, directory, &mut findings);
        }
        match (problems.is_empty(), acl, directory) {
            (true, Some(acl), Some(directory)) => {
                let (acl, directory) = (Arc::new(acl), Arc::new(directory));
                Ok(Material {
                    directory,
                    acl,
                    listeners,
                    own_issuers,
                    enrolment,
                    revoked,
                    list_ends,
                    certificates,
                    findings,
                })
            }
            _ => Err(MaterialError(problems)),
        }
    }
}

impl Material {
    /// Who issued the site's own certificates (RFC 2253).
    pub fn own_issuers(&self) -> Vec<String> {
        self.own_issuers.iter().cloned().collect()
    }
}

/// The certificate of the first TLS listener, and clients' of our own CA, if they show one.
fn enrolment(
    settings: &Settings,
    host: &HostNames,
    now: OffsetDateTime,
    own_cas: &[CertificateInfo],
    problems: &mut Vec<String>,
) -> Option<Arc<ServerConfig>> {
    let tls = settings.tls_files().next();
    let Some(tls) = tls else {
        problems.push("enrolment needs a server certificate, and no listener takes TLS".to_owned());
        return None;
    };
    if let Err(error) = pki::read_secret(&settings.ca_key()) {
        problems.push(format!("enrolment signs with the CA's key: {error}; mend that, or switch enrolment off"));
        return None;
    }
    let files = TlsFiles {
        client_ca: settings.ca_certificate(),
        client_crl: None,
        client_certs: ClientCerts::Optional,
        ..tls.clone()
    };
    // What there is to say of the certificate is said of its listener.
    let (mut findings, mut revoked, mut list_ends) = (Vec::new(), Vec::new(), Vec::new());
    let (files, findings, revoked, list_ends) = (&files, &mut findings, &mut revoked, &mut list_ends);
    let stands_in = settings.stands_in;
    let faults = &settings.faults;
    let mut loader = TlsLoader { files, stands_in, faults, host, now, own_cas, problems, findings, revoked, list_ends };
    loader.load().map(|(tls, _)| tls.without_alpn)
}

/// That there are passwords whose hashes are quick to guess at, and what to do: a line for each file.
pub fn weak_passwords(settings: &Settings, directory: &Directory) -> Vec<String> {
    let mend = match (settings.stands_in, settings.rehash) {
        (true, _) => "set them anew, and they get argon2id",
        (false, false) => "set them anew, or let `rehash: true` make better ones when their owners log in",
        (false, true) => "each gets a better one when its owner logs in",
    };
    let files = settings.realms().into_iter().filter_map(|(realm, (passwords, _))| Some((passwords?, realm)));
    let weak: BTreeMap<&Path, usize> = files.map(|(file, realm)| (file, directory.of(realm).weak())).collect();
    let told = weak.into_iter().filter(|(_, weak)| *weak > 0).map(|(file, weak)| {
        let file = file.display();
        format!("{file}: {weak} password(s) have hashes of old kinds, which are quick to guess at; {mend}")
    });
    told.collect()
}

/// Names in the ACL and among the minimum levels that nobody has: most likely typing mistakes.
fn note_strangers(settings: &Settings, acl: &Acl, directory: &Directory, findings: &mut Vec<Finding>) {
    let known: BTreeSet<&str> = directory.identities().into_iter().map(Identity::as_str).collect();
    // Where listeners have their own it would be the wrong file's name.
    let by_certificate = |tls: &TlsFiles| tls.client_certs != ClientCerts::Off && !settings.ledger().exists();
    let believed = settings.listeners.iter().any(|listener| listener.rules.unchecked);
    // Of whom another CA vouches, or nobody, there is no list.
    if !settings.is_one_realm() || believed || settings.tls_files().any(by_certificate) {
        return;
    }
    let mut note = |file: &Option<PathBuf>, name: &str| {
        if let (Some(file), false) = (file, known.contains(name)) {
            let what = format!("{}: there is no {name}: what it says of it has no effect", file.display());
            findings.push(Finding { severity: Severity::Warning, what });
        }
    };
    acl.users().for_each(|name| note(&settings.acl, name));
    directory.min_levels().for_each(|name| note(&settings.identities, name.as_str()));
}

/// Whoever can write a folder can put other keys, passwords or rules in it.
fn note_permissions(settings: &Settings, findings: &mut Vec<Finding>) {
    use std::os::unix::fs::MetadataExt;
    let folder = settings.folder();
    let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { &folder };
    let ledger = settings.ledger();
    let files = [&settings.acl, &settings.identities].into_iter().flatten().map(PathBuf::as_path);
    for path in [folder, settings.pki.as_path(), settings.data.as_path(), ledger.as_path()].into_iter().chain(files) {
        if std::fs::metadata(path).is_ok_and(|metadata| metadata.mode() & 0o022 != 0) {
            let what = format!("{path} can be written by others; run `chmod go-w {path}`", path = path.display());
            findings.push(Finding { severity: Severity::Warning, what });
        }
    }
}

fn note_openness(listener: &Listener, findings: &mut Vec<Finding>) {
    let name = &listener.address;
    if listener.rules.allow_anonymous {
        let what = format!("listener {name} lets anonymous clients in");
        findings.push(Finding { severity: Severity::Warning, what });
    }
    if listener.transport == Transport::Tcp && name.is_remote() {
        let what = format!(
            "listener {name} takes plain MQTT from the network: passwords and messages can be read on the wire"
        );
        findings.push(Finding { severity: Severity::Warning, what });
    }
}

fn text_of(path: &Path, bytes: &[u8], problems: &mut Vec<String>) -> Option<String> {
    match str::from_utf8(bytes) {
        Ok(text) => Some(text.to_owned()),
        Err(_) => {
            problems.push(format!("{}: it is not UTF-8 text", path.display()));
            None
        }
    }
}

pub(super) fn plain(path: &Path) -> Result<Vec<u8>, String> {
    std::fs::read(path).map_err(|error| format!("cannot read {}: {error}", path.display()))
}

fn read_acl(settings: &Settings, problems: &mut Vec<String>) -> Option<Acl> {
    if !settings.is_one_realm() {
        let mut realms = BTreeMap::new();
        for (realm, (_, acl)) in settings.realms() {
            realms.insert(realm, read_acl_file(settings, acl, problems)?);
        }
        return Some(Acl::of_realms(realms));
    }
    read_acl_file(settings, settings.acl.as_deref(), problems)
}

fn read_acl_file(settings: &Settings, path: Option<&Path>, problems: &mut Vec<String>) -> Option<Acl> {
    let sparkplug = settings.limits.sparkplug_aware;
    let Some(path) = path else { return Some(Acl::open_with(sparkplug, settings.stands_in)) };
    let bytes = plain(path).map_err(|problem| problems.push(problem)).ok()?;
    let text = text_of(path, &bytes, problems)?;
    match Acl::parse(&text) {
        Ok(acl) => Some(acl),
        Err(errors) => {
            problems.extend(errors.iter().map(|error| placed(path, &error.to_string())));
            None
        }
    }
}

/// `line 3: what` becomes `FILE:3: what`.
fn placed(path: &Path, error: &str) -> String {
    match error.strip_prefix("line ").and_then(|rest| rest.split_once(": ")) {
        Some((line, what)) => format!("{}:{line}: {what}", path.display()),
        None => format!("{}: {error}", path.display()),
    }
}

/// A key or password file. Where this stands in for Mosquitto one that others can read is served all the same: that
/// it is so is among the findings.
pub(super) fn secret(path: &Path, stands_in: bool) -> Result<Zeroizing<Vec<u8>>, FileError> {
    match stands_in {
        false => pki::read_secret(path),
        true => std::fs::read(path).map(Zeroizing::new).map_err(|error| FileError::Io {
            action: "read",
            path: path.to_owned(),
            error,
        }),
    }
}

/// Lines of Mosquitto's password files that let nobody in.
fn unreadable_passwords(settings: &Settings, findings: &mut Vec<Finding>) {
    for path in settings.password_files() {
        let text = plain(path).ok().and_then(|bytes| String::from_utf8(bytes).ok()).unwrap_or_default();
        for error in auth::parse_foreign_passwords(&text).1 {
            let what = match &error {
                DirectoryError::Hash { line, name, error } => format!("line {line}: {name}: {error}"),
                other => other.to_string(),
            };
            let what =
                format!("{}: nobody comes in by this line; `mosquitto_passwd` sets it anew", placed(path, &what));
            findings.push(Finding { severity: Severity::Warning, what });
        }
    }
}

/// Keys and passwords that others than their owner can read.
fn note_loose(settings: &Settings, findings: &mut Vec<Finding>) {
    let keys = settings.tls_files().map(|tls| &tls.key);
    for path in keys.chain(settings.password_files()) {
        if let Err(error @ FileError::Loose { .. }) = pki::check_secret(path) {
            // Closed in a way that leaves it readable for who the broker becomes.
            let what = match &settings.user {
                Some(user) => {
                    let path = path.display();
                    format!("{path} can be read by others; run `chgrp {user} {path}; chmod 640 {path}`")
                }
                None => error.to_string(),
            };
            findings.push(Finding { severity: Severity::Warning, what });
        }
    }
}

/// `None` where no certificate was made here.
fn read_ledger(settings: &Settings, problems: &mut Vec<String>) -> Option<Ledger> {
    let path = settings.ledger();
    if !path.exists() {
        return None;
    }
    let bytes = plain(&path).map_err(|problem| problems.push(problem)).ok()?;
    let text = text_of(&path, &bytes, problems)?;
    let damaged = |error: LedgerError| {
        format!("{}; `lockgate ca ledger --rebuild` makes it anew", placed(&path, &error.to_string()))
    };
    Ledger::parse(&text).map_err(|error| problems.push(damaged(error))).ok()
}

/// The CA whose ledger is kept here, and those before it that are not retired yet. Where the CA was made by us
/// and the ledger is missing, nobody can tell which of its certificates still admit.
fn read_own_cas(
    settings: &Settings,
    has_ledger: bool,
    now: OffsetDateTime,
    problems: &mut Vec<String>,
) -> Vec<CertificateInfo> {
    let (path, key) = (settings.ca_certificate(), settings.ca_key());
    if key.exists()
        && let Err(error) = pki::check_secret(&key)
    {
        problems.push(error.to_string());
    }
    if !path.exists() && !has_ledger {
        return Vec::new();
    }
    let infos = match CertificateInfo::read_all(&path) {
        Ok(infos) => infos,
        Err(error) => {
            problems.push(error.to_string());
            return Vec::new();
        }
    };
    let info = &infos[0];
    if !info.is_ca {
        problems.push(format!("{}: it is no CA: its basic constraints lack CA:TRUE", path.display()));
    }
    if info.not_after <= now {
        problems.push(format!("{}: the CA expired on {}", path.display(), info.not_after_date()));
    }
    let kept = pki::has_kept(&settings.issued());
    let ours = kept || key.exists() || info.common_name.as_deref().is_some_and(|name| name.contains(" Lockgate CA "));
    match (has_ledger, ours) {
        (true, _) => infos,
        (false, true) => {
            problems.push(format!(
                "{} is missing: without it nobody can tell which certificates of {} were removed; \
                 put it back from a backup, or make it anew from the certificates with `lockgate ca ledger --rebuild`",
                settings.ledger().display(),
                path.display()
            ));
            Vec::new()
        }
        (false, false) => Vec::new(),
    }
}

/// Passwords, minimum levels and current certificates alone: what a change of clients touches.
pub fn load_directory(settings: &Settings) -> Result<Directory, MaterialError> {
    let mut problems = Vec::new();
    if !settings.ledger().exists() && pki::has_kept(&settings.issued()) {
        let ledger = settings.ledger();
        problems.push(format!("{} is missing: `lockgate ca ledger --rebuild` makes it anew", ledger.display()));
    }
    let ledger = read_ledger(settings, &mut problems);
    match read_directory(settings, ledger.as_ref(), &mut problems) {
        Some(directory) if problems.is_empty() => Ok(directory),
        _ => Err(MaterialError(problems)),
    }
}

fn read_directory(settings: &Settings, ledger: Option<&Ledger>, problems: &mut Vec<String>) -> Option<Directory> {
    let passwords = read_passwords(settings.passwords.as_deref(), settings.stands_in, problems)?;
    let min_levels = read_min_levels(settings).map_err(|problem| problems.push(problem)).ok()?;
    let current = ledger.map(Ledger::current).unwrap_or_default();
    let fallback = PasswordHash::of_nobody(Cost::Human);
    let mut own = BTreeMap::new();
    for (realm, (passwords, _)) in settings.realms().into_iter().filter(|_| !settings.is_one_realm()) {
        let passwords = read_passwords(passwords, settings.stands_in, problems)?;
        own.insert(realm, Directory::new(passwords, min_levels.clone(), current.clone(), fallback.clone()));
    }
    Some(Directory::new(passwords, min_levels, current, fallback).with_realms(own))
}

/// Of a file of Mosquitto's what can be read: [`unreadable_passwords`] says what cannot.
fn read_passwords(path: Option<&Path>, foreign: bool, problems: &mut Vec<String>) -> Option<Vec<PasswordLine>> {
    let Some(path) = path else { return Some(Vec::new()) };
    let bytes = secret(path, foreign).map_err(|error| problems.push(error.to_string())).ok()?;
    let text = text_of(path, &bytes, problems)?;
    if foreign {
        return Some(auth::parse_foreign_passwords(&text).0);
    }
    auth::parse_passwords(&text)
        .map_err(|errors| problems.extend(errors.iter().map(|error| placed(path, &error.to_string()))))
        .ok()
}

/// The identities' minimum levels, or what is wrong with their file.
pub fn read_min_levels(settings: &Settings) -> Result<BTreeMap<Identity, Level>, String> {
    settings.identities.as_ref().map_or_else(|| Ok(BTreeMap::new()), |path| read_identities(path))
}

#[derive(serde::Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct IdentityEntry {
    min_level: Option<String>,
}

/// `identities.yaml`: a name, and below it its `min-level`. A file that is not there says nothing.
pub fn read_identities(path: &Path) -> Result<BTreeMap<Identity, Level>, String> {
    if !path.exists() {
        return Ok(BTreeMap::new());
    }
    let text = String::from_utf8(plain(path)?).map_err(|_| format!("{}: it is not UTF-8 text", path.display()))?;
    if text.lines().all(|line| line.trim().is_empty() || line.trim_start().starts_with('#')) {
        return Ok(BTreeMap::new());
    }
    let entries: BTreeMap<String, IdentityEntry> = serde_saphyr::from_str(&text).map_err(|error| {
        let place = error.location().map(|place| format!(":{}:{}", place.line(), place.column())).unwrap_or_default();
        let text = error.without_snippet().to_string();
        let what = text.lines().next().unwrap_or_default();
        let what = what.split(" at line ").next().unwrap_or_default();
        format!("{}{place}: {}", path.display(), what.trim_start_matches("error: "))
    })?;
    let mut levels = BTreeMap::new();
    for (name, entry) in entries {
        let identity = Identity::parse(&name).map_err(|error| format!("{}: {name:?}: {error}", path.display()))?;
        if let Some(text) = entry.min_level {
            let level = Level::parse(&text)
                .ok_or_else(|| format!("{}: {name}: min-level is plain, tls or mtls, not {text:?}", path.display()))?;
            levels.insert(identity, level);
        }
    }
    Ok(levels)
}
