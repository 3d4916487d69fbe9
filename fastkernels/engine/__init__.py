"""The one engine: requests that chase a target, pages and slots, a scheduler, runners by kind of computation."""
