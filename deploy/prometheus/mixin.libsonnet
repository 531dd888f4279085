// A monitoring mixin (monitoring.mixins.dev) of the plain files: change those, not this.
// Needs a std.parseYaml that reads block scalars: go-jsonnet does, jsonnet 0.18 does not.
{
  prometheusRules+: std.parseYaml(importstr 'rules.yml'),

  // Alerts that rest on rules.yml: load both.
  prometheusAlerts+: std.parseYaml(importstr 'alerts.yml'),

  // By file name, as jsonnet has no globs.
  grafanaDashboards+: {
    'qemu-block-fleet.json': std.parseJson(importstr '../../grafana/qemu-block-fleet.json'),
    'qemu-block-jobs.json': std.parseJson(importstr '../../grafana/qemu-block-jobs.json'),
    'qemu-block-vm.json': std.parseJson(importstr '../../grafana/qemu-block-vm.json'),
  },
}
