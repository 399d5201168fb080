//! A running broker: what it reads anew, when somebody says so or its files change, and what time brings.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use sd_notify::NotifyState;
use time::OffsetDateTime;
use tokio::sync::Mutex;
use tracing::{error, info, warn};

use super::log::{self, SetLevel};
use super::serve::Load;
use super::server::{Looked, Renewer};
use super::watch::{Changed, Snapshot};
use super::{Failure, acme, bundle, ca, system};
use crate::admin::{self, api};
use crate::auth::Directory;
use crate::config::{self, AtExpiry, ListenerAddress, Settings, Transport};
use crate::gate::{self, Bound, Gate, Listening, Material};
use crate::pki;
use crate::shard::Handle;
use crate::store::StoreHandle;
use crate::types::{CertificateId, Identity, Realm};

/// How often files are looked at; what has changed is read at the look after.
const WATCH_LOOKS: Duration = Duration::from_secs(1);
/// How often clients' certificates are looked at.
const EXPIRY_LOOKS: Duration = Duration::from_secs(2);
/// How often the server certificate is looked at, where it is renewed here.
const RENEWER_LOOKS: Duration = Duration::from_secs(600);
/// The longest pause between attempts at an ACME CA that come to nothing.
const ACME_PAUSE_MAX: Duration = Duration::from_secs(86_400);

/// What a reload changes.
pub(super) struct State {
    /// As [`Running`] has them, for who cannot wait.
    pub(super) current: Arc<ArcSwap<Settings>>,
    /// What devices enrol with, where they may.
    pub(super) enrolment_tls: Option<Arc<ArcSwap<rustls::ServerConfig>>>,
    pub(super) load: Load,
    pub(super) started: Settings,
    pub(super) shard: Handle,
    pub(super) gate: Arc<Gate>,
    pub(super) site: Arc<ArcSwap<admin::Site>>,
    /// None with `durability: off`.
    pub(super) store: Option<StoreHandle>,
    pub(super) set_level: SetLevel,
    pub(super) log_files: log::Files,
    pub(super) running: Mutex<Running>,
}

/// What a reload goes by.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Source {
    /// The configuration as it is now: somebody says so.
    Configuration,
    /// The one that runs, whose files have changed.
    Files,
}

pub(super) struct Running {
    pub(super) settings: Settings,
    pub(super) directory: Arc<Directory>,
    pub(super) listening: Vec<Listening>,
    /// Of the site's own certificates (RFC 2253).
    pub(super) issuers: Vec<String>,
    /// How the files were when they were read last, whatever came of it.
    pub(super) read: Snapshot,
}

impl State {
    /// Reads everything, validates it as a whole, then swaps it; a bad file leaves all as it was.
    pub(super) async fn reload(&self) -> Result<api::Reloaded, String> {
        self.reload_from(Source::Configuration).await
    }

    async fn reload_from(&self, source: Source) -> Result<api::Reloaded, String> {
        let mut running = self.running.lock().await;
        match NotifyState::monotonic_usec_now() {
            Ok(monotonic) => notify(&[NotifyState::Reloading, monotonic]),
            Err(_) => notify(&[NotifyState::Reloading]),
        }
        let reloaded = self.try_reload(&mut running, source).await;
        notify(&[NotifyState::Ready]);
        match &reloaded {
            Ok(reloaded) => {
                info!("reloaded");
                reloaded.notes.iter().for_each(|note| warn!("{note}"));
            }
            Err(error) => warn!("not reloaded, all is as it was: {error}"),
        }
        reloaded
    }

    async fn try_reload(&self, running: &mut Running, source: Source) -> Result<api::Reloaded, String> {
        let load = self.load.clone();
        let known = match source {
            Source::Configuration => None,
            Source::Files => {
                // What is bad is not read again before it changes.
                running.read = Snapshot::take(&running.settings);
                Some(running.settings.clone())
            }
        };
        let read = tokio::task::spawn_blocking(move || {
            let settings = known.map_or_else(|| load(), Ok)?;
            let looked = Snapshot::take(&settings);
            let material = load_material(&settings)?;
            Ok::<_, Failure>((settings, looked, material))
        });
        let (settings, looked, material) =
            read.await.map_err(|error| error.to_string())?.map_err(|failure| failure.message)?;
        if settings.data != running.settings.data {
            return Err("`data` cannot change while the broker runs: restart it".to_owned());
        }
        let before: BTreeSet<String> = addresses(&running.listening);
        let bound = self.rebind(running, &settings).await?;
        let mut notes = Vec::new();
        let changed = [
            (settings.metrics != self.started.metrics, "metrics.address"),
            (settings.enrolment != self.started.enrolment, "enrolment.address"),
            (settings.admission.hashing_max != self.started.admission.hashing_max, "admission.hashing-max"),
            (settings.log.format != self.started.log.format, "log.format"),
            (settings.shards != self.started.shards, "shards"),
            (settings.durability != self.started.durability, "durability"),
            (settings.commit_delay != self.started.commit_delay, "commit-delay"),
        ];
        for (_, key) in changed.iter().filter(|(changed, _)| *changed) {
            notes.push(format!("`{key}` is not as at the start: it takes effect at the next start"));
        }
        self.gate.reload(&settings, &material);
        for bound in bound {
            running.listening.push(bound.start(&self.gate).map_err(|error| error.to_string())?);
        }
        let after = addresses(&running.listening);
        notes.extend(after.difference(&before).map(|address| format!("listening on {address}")));
        notes.extend(before.difference(&after).map(|address| format!("no longer listening on {address}")));
        (self.set_level)(&settings.log);
        self.log_files.reopen();
        self.shard.configure(&settings.limits, &material.acl).map_err(|error| error.to_string())?;
        // What a CA issued that was retired just now ends too.
        let retired = std::mem::replace(&mut running.issuers, material.own_issuers());
        running.issuers.extend(retired);
        running.read = looked;
        self.admit_only(running, material.directory.clone()).await?;
        running.issuers = material.own_issuers();
        self.shard.revoke(material.revoked.clone()).map_err(|error| error.to_string())?;
        let site = site_of(&settings, &material, &running.listening);
        notes.extend(site.warnings(OffsetDateTime::now_utc()));
        self.site.store(Arc::new(site));
        if let (Some(served), Some(tls)) = (&self.enrolment_tls, material.enrolment) {
            served.store(tls);
        }
        self.current.store(Arc::new(settings.clone()));
        running.settings = settings;
        Ok(api::Reloaded { notes })
    }

    /// Binds the listeners that are new and stops those that are gone; these first, since a new one
    /// may want their port. If it cannot be had, they come back.
    async fn rebind(&self, running: &mut Running, settings: &Settings) -> Result<Vec<Bound>, String> {
        let known: BTreeSet<ListenerAddress> =
            running.listening.iter().map(|listening| listening.listener.address.clone()).collect();
        let new: Vec<config::Listener> =
            settings.listeners.iter().filter(|listener| !known.contains(&listener.address)).cloned().collect();
        let (kept, gone): (Vec<Listening>, Vec<Listening>) = std::mem::take(&mut running.listening)
            .into_iter()
            .partition(|listening| settings.listeners.iter().any(|kept| kept.address == listening.listener.address));
        running.listening = kept;
        let mut stopped = Vec::new();
        for listening in gone {
            stopped.push(listening.listener.clone());
            listening.stop().await;
        }
        match bind_all(&new) {
            Ok(bound) => Ok(bound),
            Err(failure) => {
                for listener in stopped {
                    match gate::bind(&listener).map(|bound| bound.start(&self.gate)) {
                        Ok(Ok(listening)) => running.listening.push(listening),
                        Ok(Err(error)) => error!("listener {} does not come back: {error}", listener.address),
                        Err(error) => error!("{error}"),
                    }
                }
                let mut site = admin::Site::clone(&self.site.load());
                site.listeners =
                    running.listening.iter().map(|listening| listener_status(&running.settings, listening)).collect();
                self.site.store(Arc::new(site));
                Err(failure.message)
            }
        }
    }

    /// Reads passwords, identities and the ledger alone: a change of clients takes effect whatever
    /// else is wrong.
    pub(super) async fn reload_directory(&self) -> Result<api::Reloaded, String> {
        let mut running = self.running.lock().await;
        let settings = running.settings.clone();
        running.read.take_clients(&settings);
        let read = tokio::task::spawn_blocking(move || gate::load_directory(&settings));
        let directory = read.await.map_err(|error| error.to_string())?.map_err(|error| error.to_string())?;
        let directory = Arc::new(directory);
        self.gate.replace_directory(directory.clone());
        let weak_passwords = gate::weak_passwords(&running.settings, &directory);
        self.site.store(Arc::new(admin::Site { weak_passwords, ..admin::Site::clone(&self.site.load()) }));
        self.admit_only(&mut running, directory).await?;
        info!("clients were read anew");
        Ok(api::Reloaded { notes: Vec::new() })
    }

    /// Ends what `directory`, which the gate goes by already, no longer admits.
    /// Done when the engine has done it.
    async fn admit_only(&self, running: &mut Running, directory: Arc<Directory>) -> Result<(), String> {
        let (gone, revoked) = difference(&running.directory, &directory);
        let of_each =
            |issuer: &String| revoked.iter().map(|serial| CertificateId::new(issuer, serial)).collect::<Vec<_>>();
        let revoked = running.issuers.iter().flat_map(of_each).collect();
        for (identity, _) in &gone {
            info!("{identity} may come in no more: its sessions end");
        }
        self.shard.revoke(revoked).map_err(|error| error.to_string())?;
        self.shard.forget(&gone).map_err(|error| error.to_string())?;
        let known: BTreeSet<&str> = directory.identities().into_iter().map(Identity::as_str).collect();
        self.gate.seen.retain(|name| known.contains(name));
        running.directory = directory;
        self.shard.ping().await.map_err(|error| error.to_string())
    }

    /// What everybody subscribes to, into the log.
    pub(super) async fn show_subscriptions(&self) {
        let Ok(clients) = self.shard.clients_with_filters().await else { return };
        let count: usize = clients.iter().map(|client| client.filters.len()).sum();
        info!("{count} subscriptions of {} sessions{}", clients.len(), system::subscription_tree(&clients));
    }

    /// Has the store synced, whatever its durability.
    pub(super) async fn sync(&self) {
        let Some(store) = self.store.clone() else {
            return info!("asked to save: nothing is kept (durability: off)");
        };
        match tokio::task::spawn_blocking(move || store.sync()).await {
            Ok(Ok(())) => info!("asked to save: all is on the disk"),
            Ok(Err(error)) => error!("asked to save: the store cannot be synced: {error}"),
            Err(error) => error!("asked to save: {error}"),
        }
    }

    /// Reads anew what has changed on the disk, once it has stood still for a look.
    pub(super) async fn watch(self: Arc<Self>) {
        let mut seen = Snapshot::default();
        loop {
            tokio::time::sleep(WATCH_LOOKS).await;
            let (settings, read) = {
                let running = self.running.lock().await;
                (running.settings.clone(), running.read.clone())
            };
            let now = Snapshot::take(&settings);
            let stands_still = now == std::mem::replace(&mut seen, now.clone());
            if !stands_still || pki::is_half_made(&settings.folder()) {
                continue;
            }
            match now.changed_since(&read, &settings) {
                Changed::Nothing => {}
                Changed::Clients => {
                    if let Err(error) = self.reload_directory().await {
                        warn!("clients are not read anew, all is as it was: {error}");
                    }
                }
                Changed::Material => {
                    info!("files of this site have changed");
                    drop(self.reload_from(Source::Files).await);
                }
            }
        }
    }

    /// Ends who is connected by a certificate that has expired, and speaks of the site's own each day.
    pub(super) async fn keep_time(self: Arc<Self>) {
        let mut spoken = tokio::time::Instant::now();
        loop {
            tokio::time::sleep(EXPIRY_LOOKS).await;
            let at_expiry = self.running.lock().await.settings.at_expiry;
            if at_expiry == AtExpiry::Disconnect && self.shard.expire(std::time::SystemTime::now()).is_err() {
                return;
            }
            if spoken.elapsed() >= Duration::from_secs(86_400) {
                spoken = tokio::time::Instant::now();
                let warnings = self.site.load().warnings(OffsetDateTime::now_utc());
                warnings.iter().for_each(|warning| warn!("{warning}"));
            }
        }
    }

    /// Where the certificate comes from an ACME CA: a new one when it is time.
    pub(super) async fn keep_certified(self: Arc<Self>) {
        // A CA counts failures, and shuts out who tries too often.
        let mut pause = RENEWER_LOOKS;
        loop {
            let settings = self.running.lock().await.settings.clone();
            if acme::is_due(&settings, OffsetDateTime::now_utc()) {
                pause = (pause * 2).min(ACME_PAUSE_MAX);
                match acme::obtain(&settings).await {
                    Ok(info) => {
                        info!("{} issued the server certificate: it expires on {}", info.issuer, info.not_after_date());
                        drop(self.reload_from(Source::Files).await);
                    }
                    Err(failure) => warn!(
                        "no certificate came from the ACME CA, what serves stays, and it is asked again in {} minutes: {}",
                        pause.as_secs() / 60,
                        failure.message
                    ),
                }
            } else {
                pause = RENEWER_LOOKS;
            }
            tokio::time::sleep(pause).await;
        }
    }

    /// With self-renewal on: a new server certificate at two thirds of the old one's life, or when this host
    /// is called otherwise.
    pub(super) async fn keep_renewed(self: Arc<Self>) {
        let mut renewer = Renewer::default();
        loop {
            let settings = self.running.lock().await.settings.clone();
            if settings.self_renew {
                let look = move || {
                    let now = OffsetDateTime::now_utc();
                    match ca::renew_list_if_due(&settings, now) {
                        Ok(true) => info!("the revocation list was signed anew"),
                        Ok(false) => {}
                        Err(failure) => warn!("the revocation list could not be signed anew: {}", failure.message),
                    }
                    let looked = renewer.look(&settings, now);
                    (renewer, looked)
                };
                let Ok((same, looked)) = tokio::task::spawn_blocking(look).await else { return };
                renewer = same;
                match looked {
                    Ok(Looked::Fit) => {}
                    Ok(Looked::NewNames(names)) => {
                        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
                        let minutes = RENEWER_LOOKS.as_secs() / 60;
                        let names = names.join(", ");
                        warn!(
                            "the server certificate does not name {names}, which is new here: if that is so in {minutes} minutes, it is renewed"
                        );
                    }
                    Ok(Looked::Renewed(expires)) => {
                        info!("the server certificate was renewed: it expires on {expires}");
                        drop(self.reload_from(Source::Files).await);
                    }
                    Err(failure) => warn!("the server certificate could not be renewed: {}", failure.message),
                }
            }
            tokio::time::sleep(RENEWER_LOOKS).await;
        }
    }
}

fn addresses(listening: &[Listening]) -> BTreeSet<String> {
    listening.iter().flat_map(|listening| listening.addresses.iter().cloned()).collect()
}

/// Who is gone, and from which realm where there are several.
type Gone = Vec<(Identity, Option<Realm>)>;

/// Who can come in no more, and which certificates admit no more.
fn difference(old: &Directory, new: &Directory) -> (Gone, Vec<Vec<u8>>) {
    let gone_from = |old: &Directory, new: &Directory, realm: Option<Realm>| {
        let known = new.identities();
        let gone = old.identities().into_iter().filter(|identity| !known.contains(identity));
        gone.map(|identity| (identity.clone(), realm)).collect::<Vec<_>>()
    };
    let mut gone = gone_from(old, new, None);
    for (realm, own) in old.realms() {
        gone.extend(gone_from(own, new.of(realm), Some(realm)));
    }
    let revoked = old.serials().filter(|serial| new.certificate_owner(serial).is_none()).map(<[u8]>::to_vec).collect();
    (gone, revoked)
}

pub(super) fn load_material(settings: &Settings) -> Result<Material, Failure> {
    Material::load(settings, &pki::host_names(), OffsetDateTime::now_utc()).map_err(Failure::new)
}

pub(super) fn bind_all(listeners: &[config::Listener]) -> Result<Vec<Bound>, Failure> {
    listeners.iter().map(gate::bind).collect::<Result<_, _>>().map_err(Failure::new)
}

pub(super) fn site_of(settings: &Settings, material: &Material, listening: &[Listening]) -> admin::Site {
    admin::Site {
        name: settings.name.clone(),
        configuration: std::path::absolute(&settings.file).unwrap_or_else(|_| settings.file.clone()),
        listeners: listening.iter().map(|listening| listener_status(settings, listening)).collect(),
        certificates: material.certificates.clone(),
        findings: material.findings.iter().map(|finding| finding.what.clone()).collect(),
        weak_passwords: gate::weak_passwords(settings, &material.directory),
        self_renew: settings.self_renew,
        list_ends: material.list_ends.clone(),
        pki: settings.pki.clone(),
        trusted: bundle::trusted(settings),
    }
}

fn listener_status(settings: &Settings, listening: &Listening) -> api::ListenerStatus {
    // Its rules may have changed since it was bound.
    let listener = settings
        .listeners
        .iter()
        .find(|listener| listener.address == listening.listener.address)
        .unwrap_or(&listening.listener);
    api::ListenerStatus {
        name: listener.address.to_string(),
        transport: listener.transport_name().to_owned(),
        addresses: listening.addresses.clone(),
        client_certs: match &listener.transport {
            Transport::Tls(files) => files.client_certs.as_str().to_owned(),
            _ => "off".to_owned(),
        },
        anonymous: listener.rules.allow_anonymous,
        min_level: listener.rules.min_level.to_string(),
    }
}

pub(super) fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(false, states) {
        warn!("cannot tell systemd: {error}");
    }
}
