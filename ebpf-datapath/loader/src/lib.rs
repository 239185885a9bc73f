//! Loads Podlane's eBPF programs, attaches, pins and replaces them, and keeps their maps as planned.
