"""Programs around nodes: settings, checks of disks, recorded order flow, exchanges on this machine."""
