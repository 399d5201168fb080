use std::collections::VecDeque;
use std::future::Future;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant, SystemTime};

use arc_swap::ArcSwap;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tracing::warn;

use super::{DataLock, api, metrics, socket};
use crate::gate::Gate;
use crate::pki::{CertificateInfo, RevocationList};
use crate::shard::{ClientRow, Handle, ShardReport};
use crate::store::{Durability, StoreHandle};

/// What is to be read anew.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Anew {
    Everything,
    /// Passwords, identities and the ledger.
    Clients,
}

/// Reads files anew and puts them into effect, or says why not.
pub type Reload =
    Arc<dyn Fn(Anew) -> Pin<Box<dyn Future<Output = Result<api::Reloaded, String>> + Send>> + Send + Sync>;

/// What the door shows and moves.
pub struct Admin {
    pub shard: Handle,
    pub gate: Arc<Gate>,
    pub reload: Reload,
    /// Swapped by a reload.
    pub site: Arc<ArcSwap<Site>>,
    /// What is kept, and how; none with `durability: off`.
    pub store: Option<(Durability, StoreHandle)>,
    started: Instant,
    /// Messages received and sent at points in time, for rates.
    samples: Mutex<VecDeque<(Instant, u64, u64)>>,
}

/// What does not change between reloads.
#[derive(Clone, Debug, Default)]
pub struct Site {
    pub name: String,
    pub configuration: PathBuf,
    pub listeners: Vec<api::ListenerStatus>,
    pub certificates: Vec<(String, CertificateInfo)>,
    pub findings: Vec<String>,
    /// What there is to say of passwords.
    pub weak_passwords: Vec<String>,
    /// The broker renews its own certificate.
    pub self_renew: bool,
    /// Which revocation list of somebody else's was to be replaced when.
    pub list_ends: Vec<(String, OffsetDateTime)>,
    /// Where the CA's own list is.
    pub pki: PathBuf,
    /// What clients verify the server with.
    pub trusted: PathBuf,
}

/// From so many days before its end on, a certificate of the site is warned of.
const WARNED_DAYS: i64 = 60;

impl Site {
    /// What deserves attention now.
    pub fn warnings(&self, now: OffsetDateTime) -> Vec<String> {
        let expiring = self.certificates.iter().filter_map(|(of, info)| expiry_warning(of, info, self.self_renew, now));
        let lists = self.list_ends.iter().filter(|(_, end)| *end <= now).map(|(list, end)| {
            format!(
                "{list} was to be replaced on {}: what it revokes stays out, what was revoked since is not known here; \
                 fetch the new one",
                end.date()
            )
        });
        self.findings
            .iter()
            .chain(&self.weak_passwords)
            .cloned()
            .chain(expiring)
            .chain(lists)
            .chain(self.own_list_warning(now))
            .collect()
    }

    /// That other servers will soon refuse all of our clients, for want of a list that is in time.
    fn own_list_warning(&self, now: OffsetDateTime) -> Option<String> {
        let path = self.pki.join("ca.crl");
        let bytes = std::fs::read(&path).ok()?;
        let end = RevocationList::parse_all(&bytes).ok()?.first()?.next_update?;
        (end - now < OWN_LIST_WARNED).then(|| {
            format!(
                "{} is good until {}: `lockgate ca crl` signs it anew, for servers that go by it",
                path.display(),
                end.date()
            )
        })
    }
}

/// How long before its end our own revocation list is spoken of.
const OWN_LIST_WARNED: time::Duration = time::Duration::days(7);

/// That a certificate of the site (`of`: `ca`, or a listener) is near its end, and what to do. One that renews
/// itself is only spoken of when that has failed for long.
pub fn expiry_warning(of: &str, info: &CertificateInfo, self_renew: bool, now: OffsetDateTime) -> Option<String> {
    let days = info.days_left(now);
    let renews_itself = self_renew && of != "ca";
    if days >= if renews_itself { WARNED_DAYS / 2 } else { WARNED_DAYS } {
        return None;
    }
    let date = info.not_after_date();
    let when = if days < 0 { format!("expired on {date}") } else { format!("expires in {days} days, on {date}") };
    Some(match of {
        "ca" => format!(
            "the CA {} {when}, and all its certificates with it: `lockgate ca rotate` begins a new one",
            info.subject
        ),
        _ => format!("the server certificate of {of} {when}: `lockgate server renew` makes a new one"),
    })
}

const SAMPLE_EVERY: Duration = Duration::from_secs(5);
const SAMPLES: usize = 13;

impl Admin {
    pub fn new(
        shard: Handle,
        gate: Arc<Gate>,
        reload: Reload,
        site: Arc<ArcSwap<Site>>,
        store: Option<(Durability, StoreHandle)>,
    ) -> Arc<Admin> {
        let started = Instant::now();
        let samples = Mutex::new(VecDeque::from([(started, 0, 0)]));
        Arc::new(Admin { shard, gate, reload, site, store, started, samples })
    }

    /// Takes samples for the rates until the engine stops.
    pub async fn sample(self: Arc<Self>) {
        loop {
            tokio::time::sleep(SAMPLE_EVERY).await;
            let Ok(report) = self.shard.report().await else { return };
            let mut samples = self.samples.lock().unwrap_or_else(PoisonError::into_inner);
            samples.push_back((Instant::now(), received(&report), sent(&report)));
            while samples.len() > SAMPLES {
                samples.pop_front();
            }
        }
    }

    fn rates(&self, report: &ShardReport) -> (f64, f64) {
        let samples = self.samples.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(&(since, was_received, was_sent)) = samples.front() else { return (0.0, 0.0) };
        let secs = since.elapsed().as_secs_f64().max(0.001);
        ((received(report) - was_received) as f64 / secs, (sent(report) - was_sent) as f64 / secs)
    }

    /// What the store says of itself; none if it does not answer soon.
    async fn store(&self) -> Option<api::Store> {
        let (durability, handle) = self.store.clone()?;
        let stats = tokio::task::spawn_blocking(move || handle.stats()).await.ok()??;
        Some(api::Store::of(&durability.to_string(), &stats))
    }

    /// Alive and ready told apart.
    async fn health(&self) -> api::Health {
        let turn = tokio::time::timeout(Duration::from_secs(2), self.shard.ping()).await;
        api::Health { alive: matches!(turn, Ok(Ok(()))), ready: !self.site.load().listeners.is_empty() }
    }

    async fn status(&self) -> Result<api::Status, Refused> {
        let report = self.shard.report().await?;
        let rows = self.shard.clients().await?;
        let site = self.site.load();
        let (received_per_sec, sent_per_sec) = self.rates(&report);
        let now = OffsetDateTime::now_utc();
        let [plain, tls, mtls] = report.levels;
        let dropped = report.counters.dropped;
        Ok(api::Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            name: site.name.clone(),
            configuration: site.configuration.display().to_string(),
            uptime_secs: self.started.elapsed().as_secs(),
            listeners: site.listeners.clone(),
            connections: api::Levels { plain, tls, mtls },
            sessions: report.gauges.sessions,
            subscriptions: report.gauges.subscriptions,
            retained_messages: report.gauges.retained_messages,
            retained_bytes: report.gauges.retained_bytes,
            queued_messages: rows.iter().map(|row| row.queued_messages).sum(),
            queued_bytes: rows.iter().map(|row| row.queued_bytes).sum(),
            inflight_messages: rows.iter().map(|row| row.inflight_messages).sum(),
            received_per_sec,
            sent_per_sec,
            dropped: dropped.slow_consumer
                + dropped.queue_full
                + dropped.expired
                + dropped.too_large
                + dropped.retained_full
                + dropped.store_failed
                + dropped.nobody_left,
            refused: self.gate.stats.refused().values().sum(),
            certificates: site
                .certificates
                .iter()
                .map(|(of, info)| api::CertificateStatus {
                    of: of.clone(),
                    subject: info.subject.clone(),
                    expires: info.not_after_date(),
                    days_left: info.days_left(now),
                    fingerprint: info.fingerprint.clone(),
                })
                .collect(),
            store: self.store().await,
            findings: site.warnings(now),
        })
    }
}

fn received(report: &ShardReport) -> u64 {
    report.counters.publishes_received.iter().sum()
}

fn sent(report: &ShardReport) -> u64 {
    report.counters.publishes_sent.iter().sum()
}

/// An answer that is no success.
struct Refused(StatusCode, String);

impl From<crate::shard::Stopped> for Refused {
    fn from(error: crate::shard::Stopped) -> Refused {
        Refused(StatusCode::SERVICE_UNAVAILABLE, error.to_string())
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        (self.0, Json(api::Problem { error: self.1 })).into_response()
    }
}

fn local(admin: Arc<Admin>) -> Router {
    Router::new()
        .route("/status", get(async |State(admin): State<Arc<Admin>>| admin.status().await.map(Json)))
        .route("/clients", get(clients))
        .route("/kick", post(kick))
        .route("/store", get(store))
        .route("/store/hold", post(hold))
        .route("/store/release", post(release))
        .route("/reload", post(async |State(admin): State<Arc<Admin>>| reload(&admin, Anew::Everything).await))
        .route("/reload/clients", post(async |State(admin): State<Arc<Admin>>| reload(&admin, Anew::Clients).await))
        .merge(observer())
        .with_state(admin)
}

/// What may be shown on the network.
fn observer() -> Router<Arc<Admin>> {
    Router::new()
        .route(
            "/health",
            get(async |State(admin): State<Arc<Admin>>| health(&admin, |health| health.alive && health.ready).await),
        )
        .route("/health/live", get(async |State(admin): State<Arc<Admin>>| health(&admin, |health| health.alive).await))
        .route(
            "/health/ready",
            get(async |State(admin): State<Arc<Admin>>| health(&admin, |health| health.ready).await),
        )
        .route("/metrics", get(show_metrics))
        .route("/ca.crt", get(async |State(admin): State<Arc<Admin>>| published(&admin, "ca.crt").await))
        .route("/ca.crl", get(async |State(admin): State<Arc<Admin>>| published(&admin, "ca.crl").await))
}

/// The CA's certificate (PEM), or its revocation list (DER, RFC 5280 section 4.2.1.13).
async fn published(admin: &Admin, name: &'static str) -> Response {
    let site = admin.site.load();
    let path = if name == "ca.crt" { site.trusted.clone() } else { site.pki.join(name) };
    let read = tokio::task::spawn_blocking(move || std::fs::read(path)).await;
    let Ok(Ok(bytes)) = read else { return StatusCode::NOT_FOUND.into_response() };
    if name == "ca.crt" {
        return ([(header::CONTENT_TYPE, "application/x-pem-file")], bytes).into_response();
    }
    match RevocationList::parse_all(&bytes) {
        Ok(lists) => ([(header::CONTENT_TYPE, "application/pkix-crl")], lists[0].der.to_vec()).into_response(),
        Err(_) => StatusCode::NOT_FOUND.into_response(),
    }
}

async fn health(admin: &Admin, good: impl Fn(&api::Health) -> bool) -> Response {
    let health = admin.health().await;
    let code = if good(&health) { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (code, Json(health)).into_response()
}

async fn clients(State(admin): State<Arc<Admin>>) -> Result<Json<api::Clients>, Refused> {
    let rows = admin.shard.clients().await?;
    Ok(Json(api::Clients { clients: rows.into_iter().map(client).collect(), seen: admin.gate.seen.entries() }))
}

fn client(row: ClientRow) -> api::Client {
    api::Client {
        client_id: row.client,
        identity: row.identity,
        connection: row.connected.map(|connected| api::Connection {
            id: connected.number,
            address: connected.address,
            listener: connected.listener,
            level: connected.level.to_string(),
            version: connected.version.to_owned(),
            since: rfc3339(connected.since),
        }),
        subscriptions: row.subscriptions,
        queued_messages: row.queued_messages,
        queued_bytes: row.queued_bytes,
        inflight_messages: row.inflight_messages,
    }
}

fn rfc3339(at: SystemTime) -> String {
    let at = OffsetDateTime::from(at);
    at.replace_nanosecond(0).unwrap_or(at).format(&Rfc3339).unwrap_or_default()
}

async fn kick(State(admin): State<Arc<Admin>>, Json(kick): Json<api::Kick>) -> Result<Json<api::Kicked>, Refused> {
    Ok(Json(api::Kicked { connections: admin.shard.kick(kick.name).await? }))
}

async fn store(State(admin): State<Arc<Admin>>) -> Result<Json<api::Store>, Refused> {
    admin.store().await.map(Json).ok_or_else(no_store)
}

/// Asked of a store that is not there, or is stuck.
fn no_store() -> Refused {
    Refused(
        StatusCode::CONFLICT,
        "this broker keeps nothing (`durability: off`), or its disk does not answer".to_owned(),
    )
}

async fn ask_store<T: Send + 'static>(
    admin: &Admin,
    ask: impl FnOnce(&StoreHandle) -> Option<T> + Send + 'static,
) -> Result<T, Refused> {
    let (_, handle) = admin.store.clone().ok_or_else(no_store)?;
    let answer = tokio::task::spawn_blocking(move || ask(&handle)).await.ok().flatten();
    answer.ok_or_else(no_store)
}

async fn hold(State(admin): State<Arc<Admin>>) -> Result<Json<api::Held>, Refused> {
    ask_store(&admin, StoreHandle::hold).await.map(|(number, files)| Json(api::Held { number, files }))
}

async fn release(
    State(admin): State<Arc<Admin>>,
    Json(release): Json<api::Release>,
) -> Result<Json<api::Released>, Refused> {
    ask_store(&admin, move |handle| Some(handle.release(release.number)))
        .await
        .map(|was_held| Json(api::Released { was_held }))
}

async fn reload(admin: &Admin, what: Anew) -> Result<Json<api::Reloaded>, Refused> {
    (admin.reload)(what).await.map(Json).map_err(|error| Refused(StatusCode::CONFLICT, error))
}

async fn show_metrics(State(admin): State<Arc<Admin>>) -> Result<Response, Refused> {
    let report = admin.shard.report().await?;
    let rows = admin.shard.clients().await?;
    let store = admin.store().await;
    let text = metrics::render(
        &report,
        &rows,
        &admin.gate.stats,
        &admin.site.load(),
        store.as_ref(),
        OffsetDateTime::now_utc(),
    );
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    Ok(([(header::CONTENT_TYPE, kind)], text).into_response())
}

/// Serves the door on the data folder's socket until dropped.
pub async fn serve_local(
    data: &Path,
    lock: &DataLock,
    admin: Arc<Admin>,
) -> std::io::Result<impl Future<Output = ()> + use<>> {
    let listener = tokio::net::UnixListener::from_std(socket::bind(data, lock)?)?;
    Ok(async move {
        if let Err(error) = axum::serve(listener, local(admin)).await {
            warn!("the local door closed: {error}");
        }
    })
}

/// Serves `/health` and `/metrics` on a bound socket until dropped.
pub fn serve_public(
    socket: std::net::TcpListener,
    admin: Arc<Admin>,
) -> std::io::Result<(SocketAddr, impl Future<Output = ()> + use<>)> {
    let socket = tokio::net::TcpListener::from_std(socket)?;
    let address = socket.local_addr()?;
    let bounded = Bounded { socket, places: Arc::new(Semaphore::new(OBSERVERS_MAX)) };
    Ok((address, async move {
        if let Err(error) = axum::serve(bounded, observer().with_state(admin)).await {
            warn!("the metrics' port closed: {error}");
        }
    }))
}

/// Connections to `metrics.address` at once: what is open to the network has a bound.
const OBSERVERS_MAX: usize = 32;
/// How long one of them may last: a scrape takes milliseconds.
const OBSERVER_LIFE: Duration = Duration::from_secs(10);

struct Bounded {
    socket: tokio::net::TcpListener,
    places: Arc<Semaphore>,
}

impl axum::serve::Listener for Bounded {
    type Io = Placed;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Placed, SocketAddr) {
        let place = self.places.clone().acquire_owned().await.expect("never closed");
        let (stream, peer) = axum::serve::Listener::accept(&mut self.socket).await;
        (Placed { stream, deadline: Box::pin(tokio::time::sleep(OBSERVER_LIFE)), _place: place }, peer)
    }

    fn local_addr(&self) -> std::io::Result<SocketAddr> {
        self.socket.local_addr()
    }
}

/// A connection that holds its place.
struct Placed {
    stream: tokio::net::TcpStream,
    deadline: Pin<Box<tokio::time::Sleep>>,
    _place: OwnedSemaphorePermit,
}

impl AsyncRead for Placed {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        // Whoever holds a place without a question gives it up.
        if self.deadline.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(std::io::ErrorKind::TimedOut.into()));
        }
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Placed {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
