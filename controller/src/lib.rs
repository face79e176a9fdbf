//! The controller: the record of who owns what, and the one who tells the peers.
//!
//! ```text
//!   operators ──► rpc::fabric ─┐                       ┌─► store (redb), by its own thread
//!                              ├─ jobs ─► driver: core ─┤
//!   agents ─► rpc::agent_link ─┘          (one task)    └─► links ─► agents
//! ```
//!
//! Tasks: the driver owns all state and never waits but for its next job; one task an agent reads its stream; one thread
//! writes. All of them end when the driver does.

mod core;
mod desired;
mod driver;
mod links;
mod planner;
mod record;
mod rpc;
mod server;
mod store;

pub use record::read_value;
pub use rpc::read_agent_message;
pub use server::{Config, ServeError, serve};
pub use store::StoreError;
