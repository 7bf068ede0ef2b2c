//! gc-core
