"""The operators' commands, which talk to a running exporter. The serving process loads none of it."""
