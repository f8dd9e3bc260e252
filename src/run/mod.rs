//! Whole runs: from settings to files, and what is shown and kept of them on the way.

mod bar;
pub mod best;
pub mod checkpoint;
mod course;
pub mod data;
pub mod evaluate;
pub mod export;
pub mod folder;
pub mod identity;
mod inference;
pub mod job;
pub mod merge;
pub mod metrics;
pub mod micro;
pub mod options;
pub mod output;
pub mod predict;
pub mod profile;
pub mod progress;
pub mod report;
pub mod skips;
pub mod svg;
pub mod text;
pub mod training;
mod watch;
