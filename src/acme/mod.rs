//! The server certificate from a CA that speaks ACME (RFC 8555): Let's Encrypt, or a company's own.

mod https;
mod solve;

use std::path::PathBuf;
use std::time::Duration;

use instant_acme::{
    Account, AccountBuilder, AccountCredentials, AuthorizationStatus, ChallengeType, Identifier, NewAccount, NewOrder,
    Order, OrderStatus, Problem, RetryPolicy,
};
use thiserror::Error;
use time::OffsetDateTime;
use zeroize::Zeroizing;

use self::https::Https;
use self::solve::Solver;
use crate::config::{Acme, Challenge};
use crate::pki::{self, CertificateInfo, KeyType, ServerName};

/// How long the CA may take to look at the answers, and to issue.
const PATIENCE: Duration = Duration::from_secs(90);
/// What an account that the directory does not know any more is told by (RFC 8555 section 6.7).
const UNKNOWN_ACCOUNT: &str = "urn:ietf:params:acme:error:accountDoesNotExist";

#[derive(Debug, Error)]
pub enum AcmeError {
    #[error("{directory}: {what}")]
    Directory { directory: String, what: String },
    #[error(
        "cannot answer the CA at {address} (acme.address): {error}; it has to reach that as port {port}: a broker that is \
         not root needs CAP_NET_BIND_SERVICE for it, or another address to which that port is led"
    )]
    Listen { address: std::net::SocketAddr, port: u16, error: std::io::Error },
    #[error("the CA does not believe that {name} is this machine: {what}")]
    NotProven { name: String, what: String },
    #[error("{0}")]
    Key(String),
    #[error("what the CA sent is not what was asked for: {0}")]
    Wrong(String),
    #[error("{path}: {what}", path = .path.display())]
    Roots { path: PathBuf, what: String },
    #[error(
        "this system has no store of trusted CAs: install ca-certificates, or name a file with the directory's CA as acme.roots"
    )]
    NoRoots,
}

/// A certificate that was obtained.
pub struct Obtained {
    /// The certificate, then those between it and the root.
    pub chain_pem: String,
    /// PKCS #8.
    pub key_pem: Zeroizing<String>,
    /// Of the certificate.
    pub info: CertificateInfo,
}

/// Orders a certificate for the names of `acme`, with a new key. `account`: as it was kept the last time; `keep` is given
/// a new one as soon as there is one, to be kept as a key is, whatever comes of the order.
pub async fn obtain(
    acme: &Acme,
    account: Option<&[u8]>,
    keep: impl Fn(&[u8]) -> Result<(), String>,
) -> Result<Obtained, AcmeError> {
    let solver = Solver::listen(acme)?;
    let client = Client { acme, solver };
    let known = match account {
        Some(bytes) => client.known(bytes).await?,
        None => None,
    };
    let fresh = known.is_none();
    let register = async || -> Result<Account, AcmeError> {
        let (account, credentials) = client.register().await?;
        keep(&credentials).map_err(AcmeError::Key)?;
        Ok(account)
    };
    let account = match known {
        Some(known) => known,
        None => register().await?,
    };
    let ordered = match client.order(&account).await {
        // Forgotten there, as test servers do at each start: as if it had never been.
        Err(Stopped::Api(problem)) if !fresh && problem.r#type.as_deref() == Some(UNKNOWN_ACCOUNT) => {
            client.order(&register().await?).await
        }
        ordered => ordered,
    };
    let (chain_pem, key_pem) = ordered.map_err(|stopped| match stopped {
        Stopped::Api(problem) => client.failed(problem),
        Stopped::Other(error) => error,
    })?;
    let info = checked(acme, &chain_pem, &key_pem).map_err(AcmeError::Wrong)?;
    Ok(Obtained { chain_pem, key_pem, info })
}

/// The certificate, if it is for the key and the names, and good for a while.
fn checked(acme: &Acme, chain_pem: &str, key_pem: &str) -> Result<CertificateInfo, String> {
    let ders = pki::load_certificates(chain_pem.as_bytes()).map_err(|error| error.to_string())?;
    let info = CertificateInfo::parse(&ders[0]).map_err(|error| error.to_string())?;
    let key = pki::load_key(key_pem.as_bytes()).map_err(|error| error.to_string())?;
    if !pki::key_matches(&key, &info).map_err(|error| error.to_string())? {
        return Err("it is for another key".to_owned());
    }
    if let Some(name) = acme.names.iter().find(|name| !info.names.contains(name)) {
        return Err(format!("it is not for {name}"));
    }
    if info.days_left(OffsetDateTime::now_utc()) < 1 {
        return Err(format!("it expires on {}", info.not_after_date()));
    }
    Ok(info)
}

/// Whose directory an account is of, as it was kept.
pub fn directory_of(account: &[u8]) -> Option<String> {
    let value: serde_json::Value = serde_json::from_slice(account).ok()?;
    value.get("directory").and_then(|text| text.as_str()).map(str::to_owned)
}

struct Client<'a> {
    acme: &'a Acme,
    solver: Solver,
}

/// Why an order came to nothing.
enum Stopped {
    Api(Problem),
    Other(AcmeError),
}

impl Client<'_> {
    fn failed(&self, what: impl ToString) -> AcmeError {
        AcmeError::Directory { directory: self.acme.directory.clone(), what: what.to_string() }
    }

    fn stopped(&self, error: instant_acme::Error) -> Stopped {
        match error {
            instant_acme::Error::Api(problem) => Stopped::Api(problem),
            error => Stopped::Other(self.failed(error)),
        }
    }

    fn builder(&self) -> Result<AccountBuilder, AcmeError> {
        let roots = https::roots(self.acme.roots.as_deref())?;
        let https = Https::new(roots).map_err(|error| self.failed(error))?;
        Ok(Account::builder_with_http(Box::new(https)))
    }

    /// The account of before, if it is one of this directory.
    async fn known(&self, bytes: &[u8]) -> Result<Option<Account>, AcmeError> {
        let Ok(credentials) = serde_json::from_slice::<AccountCredentials>(bytes) else { return Ok(None) };
        if directory_of(bytes).as_ref() != Some(&self.acme.directory) {
            return Ok(None);
        }
        match self.builder()?.from_credentials(credentials).await {
            Ok(account) => Ok(Some(account)),
            Err(error) => Err(self.failed(error)),
        }
    }

    async fn register(&self) -> Result<(Account, Zeroizing<Vec<u8>>), AcmeError> {
        let contact = self.acme.contact.as_ref().map(|address| format!("mailto:{address}"));
        let contacts: Vec<&str> = contact.iter().map(String::as_str).collect();
        // Settings say so, or there is no `Acme`.
        let wanted = NewAccount { contact: &contacts, terms_of_service_agreed: true, only_return_existing: false };
        let created = self.builder()?.create(&wanted, self.acme.directory.clone(), None).await;
        let (account, credentials) = created.map_err(|error| self.failed(error))?;
        let bytes = serde_json::to_vec(&credentials).map_err(|error| self.failed(error))?;
        Ok((account, Zeroizing::new(bytes)))
    }

    async fn order(&self, account: &Account) -> Result<(String, Zeroizing<String>), Stopped> {
        let names: Vec<Identifier> = self
            .acme
            .names
            .iter()
            .map(|name| match name {
                ServerName::Dns(name) => Identifier::Dns(name.clone()),
                ServerName::Address(address) => Identifier::Ip(*address),
            })
            .collect();
        let mut order = account.new_order(&NewOrder::new(&names)).await.map_err(|error| self.stopped(error))?;
        self.prove(&mut order).await?;
        let policy = RetryPolicy::new().initial_delay(Duration::from_millis(250)).backoff(1.5).timeout(PATIENCE);
        let ready = order.poll_ready(&policy).await;
        if !matches!(ready, Ok(OrderStatus::Ready)) {
            if let Some(why) = self.why(&mut order).await {
                return Err(Stopped::Other(why));
            }
            return Err(match ready {
                Err(error) => self.stopped(error),
                Ok(status) => Stopped::Other(self.failed(format!("the order is {status:?}"))),
            });
        }
        let (key, request) = pki::new_server_request(&self.acme.names, KeyType::EcdsaP256)
            .map_err(|error| Stopped::Other(AcmeError::Key(error.to_string())))?;
        order.finalize_csr(&request).await.map_err(|error| self.stopped(error))?;
        let chain = order.poll_certificate(&policy).await.map_err(|error| self.stopped(error))?;
        Ok((chain, key))
    }

    /// Answers what the CA asks of each name.
    async fn prove(&self, order: &mut Order) -> Result<(), Stopped> {
        let kind = match self.acme.challenge {
            Challenge::Http01 => ChallengeType::Http01,
            Challenge::TlsAlpn01 => ChallengeType::TlsAlpn01,
        };
        let mut authorizations = order.authorizations();
        while let Some(authorization) = authorizations.next().await {
            let mut authorization = authorization.map_err(|error| self.stopped(error))?;
            if authorization.status == AuthorizationStatus::Valid {
                continue;
            }
            let mut challenge = authorization.challenge(kind.clone()).ok_or_else(|| {
                Stopped::Other(
                    self.failed(format!("this CA does not offer the challenge {}", self.acme.challenge.as_str())),
                )
            })?;
            let answer = challenge.key_authorization();
            match self.acme.challenge {
                Challenge::Http01 => self.solver.answer_http(&challenge.token, answer.as_str()),
                Challenge::TlsAlpn01 => {
                    let name = challenge.identifier().to_string();
                    self.solver.answer_tls(&name, answer.digest().as_ref()).map_err(Stopped::Other)?;
                }
            }
            challenge.set_ready().await.map_err(|error| self.stopped(error))?;
        }
        Ok(())
    }

    /// What the CA found at the first name that it did not believe (RFC 8555 section 7.1.6).
    async fn why(&self, order: &mut Order) -> Option<AcmeError> {
        let mut authorizations = order.authorizations();
        while let Some(authorization) = authorizations.next().await {
            let mut authorization = authorization.ok()?;
            let state = authorization.refresh().await.ok()?;
            let problem = state.challenges.iter().find_map(|challenge| challenge.error.as_ref());
            if let Some(problem) = problem {
                let name = state.identifier().to_string();
                let what = problem.detail.clone().unwrap_or_else(|| problem.to_string());
                return Some(AcmeError::NotProven { name, what });
            }
        }
        None
    }
}
