//! Who somebody at the gate is: by certificate, password or proof.

use std::borrow::Cow;
use std::net::IpAddr;
use std::sync::PoisonError;
use std::time::Instant;

use zeroize::Zeroizing;

use super::WeakLogin;
use super::admit::Arrival;
use super::material::ListenerMaterial;
use crate::auth::{self, Certificate, Credentials, Directory, Identification, PasswordHash, Refusal};
use crate::handover::Peer;
use crate::types::{Identity, Level, Realm};

/// What it shows.
#[derive(Clone, Copy)]
pub(super) struct Login<'a> {
    pub(super) certificate: Option<&'a Certificate>,
    pub(super) user_name: Option<&'a str>,
    pub(super) password: Option<&'a [u8]>,
    /// Who an extended authentication has proved it to be.
    pub(super) proved: Option<&'a Identity>,
}

impl Arrival {
    /// By the listener's rules, which may have changed since it came.
    pub(super) async fn identify(
        &self,
        login: Login<'_>,
        material: &ListenerMaterial,
        directory: &Directory,
    ) -> Result<(Option<Identity>, Level), Refusal> {
        let (rules, realm) = (material.rules, material.entrance.realm);
        let directory = directory.of(realm);
        let credentials = Credentials {
            certificate: login.certificate,
            user_name: login.user_name,
            has_password: login.password.is_some(),
            proved: login.proved,
            tls: self.material.tls.is_some(),
        };
        match auth::identify(rules, directory, &credentials) {
            Identification::Admitted(identity, level) => Ok((identity, level)),
            Identification::Refused(refusal) => Err(refusal),
            Identification::Password { user_name, level } => {
                let password = login.password.unwrap_or_default();
                let identity = self.check_password(directory, realm, &user_name, password, rules.foreign).await?;
                auth::check_level(directory, Some(&identity), level)?;
                Ok((Some(identity), level))
            }
        }
    }

    /// Throttled before hashing; an unknown name takes as long as a known one.
    async fn check_password(
        &self,
        directory: &Directory,
        realm: Realm,
        user_name: &str,
        password: &[u8],
        foreign: bool,
    ) -> Result<Identity, Refusal> {
        let gate = &self.gate;
        let address = self.address();
        // A namesake in another realm pays for nothing, and vouches for nothing.
        let throttled: Cow<'_, str> = match realm {
            Realm::SITE => user_name.into(),
            realm => format!("{}\0{user_name}", realm.value()).into(),
        };
        let throttle = || gate.throttle.lock().unwrap_or_else(PoisonError::into_inner);
        let check = || {
            throttle().check(Instant::now(), address, &throttled).map_err(|(left, by)| Refusal::Throttled {
                seconds: left.as_secs() + u64::from(left.subsec_nanos() > 0),
                by,
            })
        };
        check()?;
        let permit = gate.hashing.clone().acquire_owned().await.expect("never closed");
        // Others may have failed while this one waited for its turn.
        check()?;
        let identity = match foreign {
            true => Some(Identity::foreign(user_name)),
            false => Identity::parse(user_name).ok(),
        };
        let known = identity.as_ref().and_then(|identity| directory.password(identity));
        let hash = known.or_else(|| directory.decoy(user_name, &gate.hasher)).cloned();
        let dearest = directory.dearest().cloned();
        let secret = Zeroizing::new(password.to_vec());
        // The permit goes along: a client that hangs up does not make room for another check.
        let checked = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            let right = hash.as_ref().is_some_and(|hash| hash.verify(&secret));
            let work = hash.as_ref().map_or(0, PasswordHash::work);
            if let Some(dearest) = dearest.filter(|dearest| !right && dearest.work() > work) {
                dearest.verify(&secret);
            }
            right
        });
        let right = checked.await.unwrap_or(false);
        match identity {
            Some(identity) if right && known.is_some() => {
                throttle().succeeded(Instant::now(), address, &throttled);
                if let (true, Some(hash)) = (self.current.rehash, known.filter(|hash| hash.is_weak()))
                    && let Some(weak) = gate.weak_logins.get()
                {
                    let (identity, hash) = (identity.clone(), hash.clone());
                    // Where too many wait it is for the next login.
                    drop(weak.try_send(WeakLogin { identity, realm, secret: Zeroizing::new(password.to_vec()), hash }));
                }
                Ok(identity)
            }
            _ => {
                throttle().failed(Instant::now(), address, &throttled);
                Err(Refusal::WrongPassword { user_name: user_name.to_owned(), exists: known.is_some() })
            }
        }
    }

    fn address(&self) -> Option<IpAddr> {
        match self.peer {
            Peer::Network(address) => Some(address.ip()),
            Peer::Unix => None,
        }
    }
}
