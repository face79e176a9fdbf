//! The controller: the record of who owns what, and the one who tells the peers.
//!
//! ```text
//!                 guard: roles, limits ─► audit log, by its own thread
//!                  │                                    ┌─► store (redb), by its own thread
//!   operators ──►──┼─► rpc::fabric ────┐                │
//!                  │                   ├─ jobs ─► driver: core
//!   agents ─────►──┴─► rpc::agent_link ┘       (one task) │
//!                                                       └─► links ─► agents
//! ```
//!
//! Tasks: the driver owns all state and never waits but for its next job; one task an agent reads its stream; one thread
//! writes. All of them end when the driver does.

mod audit;
mod core;
mod desired;
mod driver;
mod guard;
mod links;
mod planner;
mod record;
mod roles;
mod rpc;
mod server;
mod store;

pub use guard::{Accepted, Arrival, CallLimits};
pub use record::read_value;
pub use roles::{BadLine, BadRoles, RolesError, read_roles};
pub use rpc::read_agent_message;
pub use server::{Config, KEEP_MIGRATIONS, ServeError, serve, serve_connections};
pub use store::StoreError;
