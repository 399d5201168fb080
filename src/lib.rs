pub mod auth;
pub mod broker;
pub mod codec;
pub mod pki;
pub mod store;
pub mod types;
