//! The services: they convert, hand a job to the driver, and convert back. Nothing is decided here.

mod agent_link;
mod convert;
mod fabric;
mod page;

pub(crate) use agent_link::AgentLinkService;
pub use convert::read_agent_message;
pub(crate) use fabric::FabricService;
