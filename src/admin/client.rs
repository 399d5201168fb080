use std::io;
use std::path::Path;
use std::time::Duration;

use http_body_util::{BodyExt, Full};
use hyper::Request;
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;
use tokio::net::UnixStream;

use super::{api, socket};

#[derive(Debug, Error)]
pub enum CallError {
    #[error("no broker is running here (its data folder is {0}); start it with `lockgate serve`")]
    NotRunning(String),
    #[error("the broker that runs on {0} belongs to another user: try as root, or as that user")]
    NotAllowed(String),
    /// Its own words.
    #[error("{0}")]
    Refused(String),
    #[error("the broker did not answer as expected: {0}")]
    Broken(String),
}

/// Asks the broker that runs on `data`. `body` makes it a POST.
pub async fn call<A: DeserializeOwned>(data: &Path, path: &str, body: Option<&impl Serialize>) -> Result<A, CallError> {
    let timeout = Duration::from_secs(60);
    match tokio::time::timeout(timeout, ask(data, path, body)).await {
        Ok(answer) => answer,
        Err(_) => Err(CallError::Broken(format!("nothing came within {} s", timeout.as_secs()))),
    }
}

async fn ask<A: DeserializeOwned>(data: &Path, path: &str, body: Option<&impl Serialize>) -> Result<A, CallError> {
    let place = data.display().to_string();
    let connect = async {
        let (_folder, path) = socket::path(data)?;
        UnixStream::connect(path).await
    };
    let stream = connect.await.map_err(|error| match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => CallError::NotRunning(place.clone()),
        io::ErrorKind::PermissionDenied => CallError::NotAllowed(place.clone()),
        _ => CallError::Broken(error.to_string()),
    })?;
    let broken = |error: &dyn std::fmt::Display| CallError::Broken(error.to_string());
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|error| broken(&error))?;
    tokio::spawn(connection);
    let request = Request::builder().uri(path).header("host", "lockgate");
    let request = match body {
        Some(body) => {
            let text = serde_json::to_vec(body).map_err(|error| broken(&error))?;
            request.method("POST").header("content-type", "application/json").body(Full::new(Bytes::from(text)))
        }
        None => request.body(Full::new(Bytes::new())),
    };
    let request = request.map_err(|error| broken(&error))?;
    let response = sender.send_request(request).await.map_err(|error| broken(&error))?;
    let succeeded = response.status().is_success();
    let bytes = response.into_body().collect().await.map_err(|error| broken(&error))?.to_bytes();
    let problem: Option<api::Problem> = if succeeded { None } else { serde_json::from_slice(&bytes).ok() };
    if let Some(problem) = problem {
        return Err(CallError::Refused(problem.error));
    }
    // Health is answered in full, well or not.
    serde_json::from_slice(&bytes).map_err(|error| broken(&error))
}
