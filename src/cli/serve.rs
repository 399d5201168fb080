//! `lockgate serve`: the broker, from its configuration to its last goodbye.

use std::fs::OpenOptions;
use std::io::Write;
use std::net::SocketAddr;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
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

use super::enroll::SiteDesk;
use super::log;
use super::rehash::keep_rehashed;
use super::running::{Running, State, bind_all, load_material, notify, site_of};
use super::system::SysTree;
use super::watch::Snapshot;
use super::{Failure, SiteArguments, ask, bundle, control, privileges, site, system};
use crate::admin::{self, Admin, Anew, Enrolment, Reload};
use crate::auth::Methods;
use crate::broker::Restored;
use crate::config::Settings;
use crate::gate::{self, Asked, Bound, Gate, Material, Seen, Severity};
use crate::handover::Handover;
use crate::pki;
use crate::shard::{self, Handle};
use crate::store::{Durability, DurableStore, FullStore, NoStore, Opened, Store, StoreHandle};

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
    ask::no_more();
    if arguments.check {
        return check(&settings);
    }
    let site = arguments.site;
    run_on(settings, Arc::new(move || site::load(&site)), |_| {}, |_| {})
}

/// Reads a configuration anew.
pub(super) type Load = Arc<dyn Fn() -> Result<Settings, Failure> + Send + Sync>;

/// Serves until a signal ends it. `announced` is called once the log is there, `ready` when clients can come.
pub(super) fn run_on(
    settings: Settings,
    load: Load,
    announced: impl FnOnce(&Settings),
    ready: impl FnOnce(&admin::Site) + Send + 'static,
) -> Result<(), Failure> {
    let prepared = Prepared::of(&settings, announced, Box::new(ready))?;
    let _pid_file = settings.pid_file.as_deref().map(PidFile::write).transpose()?;
    let user = privileges::drop_to(&settings, &prepared.files)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .thread_name("gate")
        .enable_all()
        .build()
        .map_err(Failure::new)?;
    let outcome = runtime.block_on(serve(settings, load, prepared, user));
    // Tasks of connections that are not in yet end with the runtime.
    runtime.shutdown_timeout(Duration::from_secs(1));
    outcome
}

/// `serve --check`: everything that a start would look at, and whether the ports are free.
fn check(settings: &Settings) -> Result<(), Failure> {
    let material = load_material(settings)?;
    can_sign(settings)?;
    let ports = if admin::is_data_taken(&settings.data) {
        "a broker runs on this data folder: its ports are not tried"
    } else {
        bind_all(&settings.listeners)?;
        bind_beside(settings.metrics, "metrics.address")?;
        bind_beside(settings.enrolment, "enrolment.address")?;
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
    for weak in gate::weak_passwords(settings, &material.directory) {
        say!("  warning: {weak}");
    }
    let now = OffsetDateTime::now_utc();
    for (of, info) in &material.certificates {
        if let Some(warning) = admin::expiry_warning(of, info, settings.self_renew, now) {
            say!("  warning: {warning}");
        }
    }
    Ok(())
}

/// Where devices enrol the broker must be able to sign, and not only when the first one comes.
fn can_sign(settings: &Settings) -> Result<(), Failure> {
    match settings.enrolment {
        Some(_) => bundle::authority(settings).map(drop),
        None => Ok(()),
    }
}

/// The socket of something beside MQTT, if it is to be on the network; `key`: what says where.
fn bind_beside(address: Option<SocketAddr>, key: &str) -> Result<Option<std::net::TcpListener>, Failure> {
    let Some(address) = address else { return Ok(None) };
    let bound = std::net::TcpListener::bind(address).and_then(|socket| socket.set_nonblocking(true).map(|()| socket));
    bound
        .map(Some)
        .map_err(|error| Failure::new(format!("cannot listen on {address} ({key}): {error}; choose another, or `off`")))
}

/// What may take root's rights: keys that are read, ports that are bound.
struct Prepared {
    material: Material,
    set_level: log::SetLevel,
    flood: log::Flood,
    files: log::Files,
    lines: Option<log::Lines>,
    bound: Vec<Bound>,
    metrics: Option<std::net::TcpListener>,
    enrolment: Option<std::net::TcpListener>,
    ready: Ready,
}

/// Called when clients can come.
type Ready = Box<dyn FnOnce(&admin::Site) + Send>;

impl Prepared {
    fn of(settings: &Settings, announced: impl FnOnce(&Settings), ready: Ready) -> Result<Prepared, Failure> {
        let material = load_material(settings)?;
        can_sign(settings)?;
        if admin::is_data_taken(&settings.data) {
            return Err(Failure::new(admin::DataLockError::Taken(settings.data.clone())));
        }
        let log::Started { set_level, flood, files, lines } = log::start(&settings.log);
        announced(settings);
        Ok(Prepared {
            material,
            set_level,
            flood,
            files,
            lines,
            bound: bind_all(&settings.listeners)?,
            metrics: bind_beside(settings.metrics, "metrics.address")?,
            enrolment: bind_beside(settings.enrolment, "enrolment.address")?,
            ready,
        })
    }
}

async fn serve(settings: Settings, load: Load, prepared: Prepared, user: Option<String>) -> Result<(), Failure> {
    let signals = Signals::new()?;
    let read = Snapshot::take(&settings);
    let Prepared { material, set_level, flood, files, lines, bound, metrics, enrolment, ready } = prepared;
    let data_lock = admin::lock_data(&settings.data).map_err(Failure::new)?;
    if let Some(user) = &user {
        info!("running as {user}");
        if let Some(what) = privileges::unreadable(&settings, user) {
            warn!("{what}");
        }
    }
    raise_file_limit(settings.admission.connections_max);
    let (stores, restored, store) = open_store(&settings)?;
    let (questions, asked) = settings.stands_in.then(|| tokio::sync::mpsc::channel(control::QUESTIONS_MAX)).unzip();
    let start = shard::Start {
        limits: settings.limits.clone(),
        acl: material.acl.clone(),
        durable: restored.is_some(),
        stores,
        restored,
        methods: Methods::default(),
        questions,
        faults: settings.faults.clone(),
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
    let current = Arc::new(ArcSwap::from_pointee(settings.clone()));
    let enrolment_tls = material.enrolment.clone().map(|tls| Arc::new(ArcSwap::new(tls)));
    let state = Arc::new(State {
        current: current.clone(),
        enrolment_tls: enrolment_tls.clone(),
        load,
        started: settings.clone(),
        shard: shard.clone(),
        gate: gate.clone(),
        site: site.clone(),
        store: store.clone(),
        set_level,
        log_files: files,
        running: Mutex::new(Running {
            settings: settings.clone(),
            directory: material.directory.clone(),
            listening,
            issuers: material.own_issuers(),
            read,
        }),
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
    let tree = SysTree::new(shard.clone(), gate.clone(), site.clone());
    gate.tells(told(tree.clone(), current.clone()));
    let answers = asked.map(|asked| control::keep_answering(asked, current.clone(), shard.clone()));
    let enrolment = enrolment.zip(enrolment_tls).map(|(socket, tls)| {
        let desk = Arc::new(SiteDesk { settings: current });
        Enrolment::new(desk, reload.clone(), tls).serve(socket)
    });
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
    if let Some(served) = enrolment {
        let (address, served) = served.map_err(Failure::new)?;
        info!("devices enrol at https://{address}");
        tasks.push(tokio::spawn(served));
    }
    tasks.push(tokio::spawn(housekeeping(seen.clone(), seen_file.clone(), flood.clone())));
    tasks.push(tokio::spawn(watchdog(shard.clone())));
    if let Some(lines) = lines {
        tasks.push(tokio::spawn(system::keep_telling(lines, shard.clone())));
    }
    tasks.extend(answers.map(tokio::spawn));
    if let Some(interval) = settings.sys_interval {
        tasks.push(tokio::spawn(system::keep_announcing(interval, tree)));
    }
    if settings.self_renew
        && let Err(failure) = bundle::authority(&settings)
    {
        warn!("the server certificate will not be renewed: {}", failure.message);
    }
    tasks.push(tokio::spawn(keep_rehashed(state.clone(), state.gate.weak_logins())));
    tasks.push(tokio::spawn(state.clone().keep_renewed()));
    tasks.push(tokio::spawn(state.clone().keep_certified()));
    tasks.push(tokio::spawn(state.clone().watch()));
    tasks.push(tokio::spawn(state.clone().keep_time()));
    announce(&site.load(), &material);
    ready(&site.load());
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

/// What is asked by HTTP, where a listener serves that.
fn told(tree: Arc<SysTree>, current: Arc<ArcSwap<Settings>>) -> gate::Told {
    Arc::new(move |asked| {
        let (tree, current) = (tree.clone(), current.clone());
        Box::pin(async move {
            match asked {
                Asked::SysTree => tree.counts().await.map(|counts| counts.to_string()),
                Asked::Listeners => Some(control::listeners(&current.load()).to_string()),
                Asked::Version => Some(env!("CARGO_PKG_VERSION").to_owned()),
            }
        })
    })
}

type Stores = Vec<Box<dyn Store + Send>>;

/// The store and what it had; with `durability: off` there is none.
fn open_store(settings: &Settings) -> Result<(Stores, Option<Restored>, Option<StoreHandle>), Failure> {
    if settings.faults.full_disk {
        let (store, restored) = FullStore::new();
        return Ok((vec![Box::new(store)], Some(restored), None));
    }
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
    // Findings have been said, by their severities.
    let warnings = site.warnings(OffsetDateTime::now_utc()).into_iter().skip(site.findings.len());
    warnings.for_each(|warning| warn!("{warning}"));
    info!("{} is ready", site.name);
}

/// The first of the real-time signals that are a program's own (signal(7)).
const SIGRTMIN: i32 = 34;

/// The broker's process id, for those who look for it; gone with the broker.
struct PidFile(PathBuf);

impl PidFile {
    fn write(path: &std::path::Path) -> Result<PidFile, Failure> {
        // Its folder may be the user's that this broker becomes: a link there could lead root anywhere.
        let written = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o644)
            .custom_flags(rustix::fs::OFlags::NOFOLLOW.bits() as i32)
            .open(path)
            .and_then(|mut file| {
                let metadata = file.metadata()?;
                if !metadata.is_file() || metadata.nlink() != 1 {
                    return Err(std::io::Error::other("it is no file of its own"));
                }
                file.set_len(0)?;
                file.write_all(std::process::id().to_string().as_bytes())
            });
        written
            .map_err(|error| Failure::new(format!("Error: Unable to write pid file {}: {error}.", path.display())))?;
        Ok(PidFile(path.to_owned()))
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        drop(std::fs::remove_file(&self.0));
    }
}

/// Taken before anything else, so that an early signal is not the default's.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
    /// Mosquitto's: save, show, rotate.
    user1: Signal,
    user2: Signal,
    realtime: Signal,
}

impl Signals {
    fn new() -> Result<Signals, Failure> {
        let stream = |kind| signal(kind).map_err(|error| Failure::new(format!("cannot take signals: {error}")));
        Ok(Signals {
            terminate: stream(SignalKind::terminate())?,
            interrupt: stream(SignalKind::interrupt())?,
            hangup: stream(SignalKind::hangup())?,
            user1: stream(SignalKind::user_defined1())?,
            user2: stream(SignalKind::user_defined2())?,
            realtime: stream(SignalKind::from_raw(SIGRTMIN))?,
        })
    }

    /// Waits for the signal that ends the broker; reloads meanwhile.
    async fn wait(mut self, state: &State) -> &'static str {
        loop {
            tokio::select! {
                _ = self.terminate.recv() => return "SIGTERM",
                _ = self.interrupt.recv() => return "SIGINT",
                _ = self.hangup.recv() => {
                    if state.started.stands_in {
                        info!("Reloading config.");
                    }
                    drop(state.reload().await);
                }
                _ = self.user1.recv() => state.sync().await,
                _ = self.user2.recv() => state.show_subscriptions().await,
                _ = self.realtime.recv() => state.log_files.reopen(),
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
