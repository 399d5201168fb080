//! `lockgate serve`: the broker, from its configuration to its last goodbye.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use clap::Args;
use sd_notify::NotifyState;
use time::OffsetDateTime;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::Mutex;
use tracing::{debug, error, info, warn};

use super::log::{self, SetLevel};
use super::site::{self, Files};
use super::{Failure, SiteArguments, bundle};
use crate::admin::{self, Admin, Anew, Reload, api};
use crate::auth::{Directory, Methods};
use crate::broker::Restored;
use crate::config::{self, ListenerAddress, Settings, Transport};
use crate::gate::{self, Bound, Gate, Listening, Material, Seen, Severity};
use crate::handover::Handover;
use crate::pki::{self, CertificateInfo, Entry, Event, Kind, LEAF_DAYS_MAX, Ledger, Lock, Transaction};
use crate::shard::{self, Handle};
use crate::store::{Durability, DurableStore, NoStore, Opened, Store, StoreHandle};
use crate::types::Identity;

#[derive(Args, Clone)]
#[command(after_help = "Example:\n  lockgate serve --config /etc/lockgate/lockgate.yaml")]
pub(super) struct Arguments {
    /// Examine the configuration and everything it names, and stop
    #[arg(long)]
    check: bool,
    #[command(flatten)]
    site: SiteArguments,
}

impl Arguments {
    pub(super) fn of(site: SiteArguments) -> Arguments {
        Arguments { check: false, site }
    }
}

/// How long a shutdown may take.
const SHUTDOWN: Duration = Duration::from_secs(8);
const WORKERS: usize = 2;

pub(super) fn run(arguments: Arguments) -> Result<(), Failure> {
    let settings = site::load(&arguments.site)?;
    if arguments.check {
        return check(&settings);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .thread_name("gate")
        .enable_all()
        .build()
        .map_err(Failure::new)?;
    let outcome = runtime.block_on(serve(settings, arguments.site));
    // Tasks of connections that are not in yet end with the runtime.
    runtime.shutdown_timeout(Duration::from_secs(1));
    outcome
}

fn load_material(settings: &Settings) -> Result<Material, Failure> {
    Material::load(settings, &pki::host_names(), OffsetDateTime::now_utc()).map_err(Failure::new)
}

/// `serve --check`: everything that a start would look at, and whether the ports are free.
fn check(settings: &Settings) -> Result<(), Failure> {
    let material = load_material(settings)?;
    let ports = if admin::is_data_taken(&settings.data) {
        "a broker runs on this data folder: its ports are not tried"
    } else {
        bind_all(&settings.listeners)?;
        bind_metrics(settings)?;
        "the ports are free"
    };
    say!("{}: good; {ports}", settings.file.display());
    for (of, info) in &material.certificates {
        say!("  {of}: {} ({} days left)", info.subject, info.days_left(OffsetDateTime::now_utc()));
    }
    let files = rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum;
    if let Some(files) = files.filter(|files| *files < settings.admission.connections_max as u64 + 64) {
        say!("  note: the limit on open files allows about {} connections", files.saturating_sub(64));
    }
    for finding in &material.findings {
        let severity = if finding.severity == Severity::Warning { "warning" } else { "note" };
        say!("  {severity}: {}", finding.what);
    }
    Ok(())
}

fn bind_all(listeners: &[config::Listener]) -> Result<Vec<Bound>, Failure> {
    listeners.iter().map(gate::bind).collect::<Result<_, _>>().map_err(Failure::new)
}

/// The socket for `/metrics` and `/health`, if they are to be on the network.
fn bind_metrics(settings: &Settings) -> Result<Option<std::net::TcpListener>, Failure> {
    let Some(address) = settings.metrics else { return Ok(None) };
    let bound = std::net::TcpListener::bind(address).and_then(|socket| socket.set_nonblocking(true).map(|()| socket));
    bound.map(Some).map_err(|error| {
        Failure::new(format!("cannot listen on {address} (metrics.address): {error}; choose another, or `off`"))
    })
}

async fn serve(settings: Settings, arguments: SiteArguments) -> Result<(), Failure> {
    let signals = Signals::new()?;
    let material = load_material(&settings)?;
    let data_lock = admin::lock_data(&settings.data).map_err(Failure::new)?;
    let (set_level, flood) = log::start(&settings.log);
    let bound = bind_all(&settings.listeners)?;
    let metrics = bind_metrics(&settings)?;
    raise_file_limit(settings.admission.connections_max);
    let (stores, restored, store) = open_store(&settings)?;
    let start = shard::Start {
        limits: settings.limits.clone(),
        acl: material.acl.clone(),
        durable: restored.is_some(),
        stores,
        restored,
        methods: Methods::default(),
    };
    let (shard, threads) = shard::spawn(start).map_err(Failure::new)?;
    let seen_file = settings.data.join("seen.json");
    let seen = Arc::new(Seen::load(&seen_file));
    let deliver = {
        let shard = shard.clone();
        Arc::new(move |handover: Handover| {
            if let Err(error) = shard.adopt(handover) {
                error!("a client could not be taken over: {error}");
            }
        })
    };
    let gate = Gate::new(&settings, &material, Methods::default(), seen.clone(), deliver);
    let mut listening = Vec::new();
    for bound in bound {
        listening.push(bound.start(&gate).map_err(Failure::new)?);
    }
    let site = Arc::new(ArcSwap::from_pointee(site_of(&settings, &material, &listening)));
    let state = Arc::new(State {
        arguments,
        started: settings.clone(),
        shard: shard.clone(),
        gate: gate.clone(),
        site: site.clone(),
        set_level,
        running: Mutex::new(Running { settings: settings.clone(), directory: material.directory.clone(), listening }),
    });
    let reload: Reload = {
        let state = state.clone();
        Arc::new(move |what| {
            let state = state.clone();
            Box::pin(async move {
                match what {
                    Anew::Everything => state.reload().await,
                    Anew::Clients => state.reload_directory().await,
                }
            })
        })
    };
    let door = Admin::new(shard.clone(), gate, reload, site.clone(), store.map(|store| (settings.durability, store)));
    let local = admin::serve_local(&settings.data, &data_lock, door.clone())
        .await
        .map_err(|error| Failure::new(format!("cannot open the local door in {}: {error}", settings.data.display())))?;
    let mut tasks = vec![tokio::spawn(local), tokio::spawn(door.clone().sample())];
    if let Some(socket) = metrics {
        let (address, public) = admin::serve_public(socket, door.clone()).map_err(Failure::new)?;
        info!("metrics and health on http://{address}/metrics");
        tasks.push(tokio::spawn(public));
    }
    tasks.push(tokio::spawn(housekeeping(seen.clone(), seen_file.clone(), flood.clone())));
    tasks.push(tokio::spawn(watchdog(shard.clone())));
    tasks.push(tokio::spawn(state.clone().keep_renewed()));
    announce(&site.load(), &material);
    notify(&[NotifyState::Ready]);
    let mut engine = tokio::task::JoinSet::new();
    for thread in threads {
        engine.spawn_blocking(move || thread.join());
    }
    let stopped = tokio::select! {
        stopped = signals.wait(&state) => stopped,
        // Nothing is served without it: better gone and started anew than half alive.
        _ = engine.join_next() => return Err(Failure::new("the broker's engine ended by itself; its last words are in the log")),
    };
    notify(&[NotifyState::Stopping]);
    info!("{stopped}: stopping");
    state.running.lock().await.listening.clear();
    // Alive, and no longer ready.
    site.store(Arc::new(admin::Site { listeners: Vec::new(), ..admin::Site::clone(&site.load()) }));
    if !matches!(tokio::time::timeout(SHUTDOWN, shard.shut_down()).await, Ok(Ok(()))) {
        warn!("not all clients took their goodbye in time");
    }
    let ends = async { while engine.join_next().await.is_some() {} };
    // What the store has pending is written down.
    if tokio::time::timeout(Duration::from_secs(30), ends).await.is_err() {
        warn!("the engine does not end");
    }
    flood.sum_up(true);
    tasks.iter().for_each(tokio::task::JoinHandle::abort);
    save_seen(&seen, &seen_file);
    info!("stopped");
    Ok(())
}

type Stores = Vec<Box<dyn Store + Send>>;

/// The store and what it had; with `durability: off` there is none.
fn open_store(settings: &Settings) -> Result<(Stores, Option<Restored>, Option<StoreHandle>), Failure> {
    if settings.durability == Durability::Off {
        let stores = (0..settings.shards).map(|_| Box::new(NoStore::default()) as Box<dyn Store + Send>).collect();
        return Ok((stores, None, None));
    }
    let folder = settings.store();
    let opened = DurableStore::open(&folder, settings.durability, settings.commit_delay)
        .map_err(|error| Failure::new(format!("{}: {error}", folder.display())))?;
    let Opened { store, handle, restored, recovery } = opened;
    for damage in &recovery.damages {
        error!("{}: {damage}", folder.display());
    }
    if let Some(torn) = &recovery.torn {
        warn!(
            "{}: {torn}: a commit was cut short, as it seems, and nobody was told that it was safe; if nothing was killed \
             and no power was cut, the disk has lost it",
            folder.display()
        );
    }
    if recovery.commits_missing > 0 {
        error!("{}: {} commits are missing", folder.display(), recovery.commits_missing);
    }
    if recovery.messages_lost > 0 {
        let (messages, clients) = (recovery.messages_lost, recovery.clients_affected);
        error!("{}: {messages} messages for {clients} clients are lost with what was damaged", folder.display());
    }
    let queued: usize = restored.sessions.iter().map(|session| session.waiting.len() + session.inflight.len()).sum();
    info!(
        "{} sessions with {queued} messages and {} retained messages are there again ({} ms)",
        restored.sessions.len(),
        restored.retained.len(),
        recovery.took.as_millis()
    );
    Ok((vec![Box::new(store)], Some(restored), Some(handle)))
}

/// As many files as the system allows: each connection is one.
fn raise_file_limit(connections_max: usize) {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    let _ = setrlimit(Resource::Nofile, raised);
    if let Some(files) = getrlimit(Resource::Nofile).current
        && files < connections_max as u64 + 64
    {
        debug!(
            "the limit on open files allows about {} connections (admission.connections-max is {connections_max})",
            files.saturating_sub(64)
        );
    }
}

fn announce(site: &admin::Site, material: &Material) {
    for listener in &site.listeners {
        info!(
            "listening on {} ({}, client certificates {})",
            listener.addresses.join(" and "),
            listener.transport,
            listener.client_certs
        );
    }
    for finding in &material.findings {
        match finding.severity {
            Severity::Warning => warn!("{}", finding.what),
            Severity::Note => info!("{}", finding.what),
        }
    }
    info!("{} is ready", site.name);
}

fn site_of(settings: &Settings, material: &Material, listening: &[Listening]) -> admin::Site {
    admin::Site {
        name: settings.name.clone(),
        configuration: std::path::absolute(&settings.file).unwrap_or_else(|_| settings.file.clone()),
        listeners: listening.iter().map(|listening| listener_status(settings, listening)).collect(),
        certificates: material.certificates.clone(),
        findings: material.findings.iter().map(|finding| finding.what.clone()).collect(),
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
        transport: listener.transport.as_str().to_owned(),
        addresses: listening.addresses.clone(),
        client_certs: match &listener.transport {
            Transport::Tls(files) => files.client_certs.as_str().to_owned(),
            _ => "off".to_owned(),
        },
        anonymous: listener.rules.allow_anonymous,
        min_level: listener.rules.min_level.to_string(),
    }
}

fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(false, states) {
        warn!("cannot tell systemd: {error}");
    }
}

/// Taken before anything else, so that an early signal is not the default's.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    fn new() -> Result<Signals, Failure> {
        let stream = |kind| signal(kind).map_err(|error| Failure::new(format!("cannot take signals: {error}")));
        Ok(Signals {
            terminate: stream(SignalKind::terminate())?,
            interrupt: stream(SignalKind::interrupt())?,
            hangup: stream(SignalKind::hangup())?,
        })
    }

    /// Waits for the signal that ends the broker; reloads meanwhile.
    async fn wait(mut self, state: &State) -> &'static str {
        loop {
            tokio::select! {
                _ = self.terminate.recv() => return "SIGTERM",
                _ = self.interrupt.recv() => return "SIGINT",
                _ = self.hangup.recv() => {
                    drop(state.reload().await);
                }
            }
        }
    }
}

/// Tells systemd that the engine turns, as often as it wants to know.
async fn watchdog(shard: Handle) {
    let mut micros = 0;
    if !sd_notify::watchdog_enabled(false, &mut micros) {
        return;
    }
    loop {
        tokio::time::sleep(Duration::from_micros(micros / 3)).await;
        if shard.ping().await.is_ok() {
            notify(&[NotifyState::Watchdog]);
        }
    }
}

async fn housekeeping(seen: Arc<Seen>, file: PathBuf, flood: log::Flood) {
    let mut saved = seen.entries();
    loop {
        tokio::time::sleep(Duration::from_secs(5)).await;
        flood.sum_up(false);
        let entries = seen.entries();
        if entries != saved {
            saved = entries;
            let (seen, file) = (seen.clone(), file.clone());
            drop(tokio::task::spawn_blocking(move || save_seen(&seen, &file)).await);
        }
    }
}

fn save_seen(seen: &Seen, file: &std::path::Path) {
    let text = serde_json::to_vec_pretty(&seen.entries()).expect("plain data");
    if let Err(error) = pki::replace(file, &text, 0o600) {
        warn!("cannot write who was seen: {error}");
    }
}

/// What a reload changes.
struct State {
    arguments: SiteArguments,
    started: Settings,
    shard: Handle,
    gate: Arc<Gate>,
    site: Arc<ArcSwap<admin::Site>>,
    set_level: SetLevel,
    running: Mutex<Running>,
}

struct Running {
    settings: Settings,
    directory: Arc<Directory>,
    listening: Vec<Listening>,
}

impl State {
    /// Reads everything, validates it as a whole, then swaps it; a bad file leaves all as it was.
    async fn reload(&self) -> Result<api::Reloaded, String> {
        let mut running = self.running.lock().await;
        match NotifyState::monotonic_usec_now() {
            Ok(monotonic) => notify(&[NotifyState::Reloading, monotonic]),
            Err(_) => notify(&[NotifyState::Reloading]),
        }
        let reloaded = self.try_reload(&mut running).await;
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

    async fn try_reload(&self, running: &mut Running) -> Result<api::Reloaded, String> {
        let arguments = self.arguments.clone();
        let read = tokio::task::spawn_blocking(move || {
            let settings = site::load(&arguments)?;
            let material = load_material(&settings)?;
            Ok::<_, Failure>((settings, material))
        });
        let (settings, material) = read.await.map_err(|error| error.to_string())?.map_err(|failure| failure.message)?;
        if settings.data != running.settings.data {
            return Err("`data` cannot change while the broker runs: restart it".to_owned());
        }
        let before: BTreeSet<String> = addresses(&running.listening);
        let bound = self.rebind(running, &settings).await?;
        let mut notes = Vec::new();
        let changed = [
            (settings.metrics != self.started.metrics, "metrics.address"),
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
        self.shard.configure(&settings.limits, &material.acl).map_err(|error| error.to_string())?;
        self.admit_only(running, material.directory.clone()).await?;
        self.site.store(Arc::new(site_of(&settings, &material, &running.listening)));
        notes.extend(material.findings.iter().map(|finding| finding.what.clone()));
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
    async fn reload_directory(&self) -> Result<api::Reloaded, String> {
        let mut running = self.running.lock().await;
        let settings = running.settings.clone();
        let read = tokio::task::spawn_blocking(move || gate::load_directory(&settings));
        let directory = read.await.map_err(|error| error.to_string())?.map_err(|error| error.to_string())?;
        let directory = Arc::new(directory);
        self.gate.replace_directory(directory.clone());
        self.admit_only(&mut running, directory).await?;
        info!("clients were read anew");
        Ok(api::Reloaded { notes: Vec::new() })
    }

    /// Ends what `directory`, which the gate goes by already, no longer admits.
    /// Done when the engine has done it.
    async fn admit_only(&self, running: &mut Running, directory: Arc<Directory>) -> Result<(), String> {
        let (gone, revoked) = difference(&running.directory, &directory);
        for identity in &gone {
            info!("{identity} may come in no more: its sessions end");
        }
        self.shard.revoke(&revoked).map_err(|error| error.to_string())?;
        self.shard.forget(&gone).map_err(|error| error.to_string())?;
        let known: BTreeSet<&str> = directory.identities().into_iter().map(Identity::as_str).collect();
        self.gate.seen.retain(|name| known.contains(name));
        running.directory = directory;
        self.shard.ping().await.map_err(|error| error.to_string())
    }

    /// With self-renewal on: a new server certificate at two thirds of the old one's life.
    async fn keep_renewed(self: Arc<Self>) {
        loop {
            let settings = self.running.lock().await.settings.clone();
            if settings.self_renew {
                let renewed =
                    tokio::task::spawn_blocking(move || renew_if_due(&settings, OffsetDateTime::now_utc())).await;
                match renewed {
                    Ok(Ok(false)) => {}
                    Ok(Ok(true)) => drop(self.reload().await),
                    Ok(Err(failure)) => warn!("the server certificate could not be renewed: {}", failure.message),
                    Err(error) => warn!("the server certificate could not be renewed: {error}"),
                }
            }
            tokio::time::sleep(Duration::from_secs(3_600)).await;
        }
    }
}

fn addresses(listening: &[Listening]) -> BTreeSet<String> {
    listening.iter().flat_map(|listening| listening.addresses.iter().cloned()).collect()
}

/// Who can come in no more, and which certificates admit no more.
fn difference(old: &Directory, new: &Directory) -> (Vec<Identity>, Vec<Vec<u8>>) {
    let known = new.identities();
    let gone = old.identities().into_iter().filter(|identity| !known.contains(identity)).cloned().collect();
    let revoked = old.serials().filter(|serial| new.certificate_owner(serial).is_none()).map(<[u8]>::to_vec).collect();
    (gone, revoked)
}

/// Renews the site's server certificate with the names that it has and a new key, if two thirds of
/// its life are over; says whether it did.
fn renew_if_due(settings: &Settings, now: OffsetDateTime) -> Result<bool, Failure> {
    let tls = settings.listeners.iter().find_map(|listener| match &listener.transport {
        Transport::Tls(files) if files.certificate.starts_with(&settings.pki) => Some(files),
        _ => None,
    });
    let Some(tls) = tls else { return Ok(false) };
    let old = CertificateInfo::read(&tls.certificate)?;
    let life = old.not_after - old.not_before;
    if now < old.not_before + life * 2 / 3 {
        return Ok(false);
    }
    let files = Files::of(settings);
    let _lock = Lock::acquire(&files.anchor)?;
    files.recover()?;
    let authority = bundle::authority(settings)?;
    let days = u32::try_from(life.whole_days().clamp(1, i64::from(LEAF_DAYS_MAX))).unwrap_or(LEAF_DAYS_MAX);
    // Clients that need RSA still need it.
    let key_type = old.key_type.unwrap_or_default();
    let issued = authority.issue_server(&settings.name, &old.names, key_type, days, now).map_err(Failure::new)?;
    let event = Event::Issued(Entry::of(&issued.info, Kind::Server, None, key_type, now));
    let mut change = Transaction::new(&files.anchor);
    change.write(&tls.certificate, issued.certificate_pem.as_str(), 0o644, files.owner());
    change.write(&tls.key, issued.key_pem.as_str(), 0o600, files.owner());
    change.write(&files.ledger, files.ledger_text()? + &Ledger::lines(&[event]), 0o600, files.owner());
    change.commit()?;
    info!("the server certificate was renewed: it expires on {}", issued.info.not_after_date());
    Ok(true)
}
