//! What a daemon may do on its host, and who sees its files.
//!
//! [`confine`] is for a daemon's first breath: capabilities that are not on its list go, for good and for everything it will
//! start. [`private_dir`], [`passage_dir`], [`private_file`] and [`private_log`] are how it opens what it keeps: its own, for nobody else, through no symbolic
//! link.

mod files;
mod process;

pub use files::{NotPrivate, passage_dir, private_dir, private_file, private_log};
pub use process::{ConfineError, Confined, Keep, confine};
pub use rustix::thread::CapabilitySet;
