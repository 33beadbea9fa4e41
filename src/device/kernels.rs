//! Generated launches.
