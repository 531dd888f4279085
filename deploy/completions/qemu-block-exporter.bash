# Generated from the parsers by `make golden`, with shtab; do not edit.

_shtab_qemu_block_exporter_subparsers=(serve once demo vms jobs chain commit complete cancel pause resume speed finalize dismiss snapshot)

_shtab_qemu_block_exporter_serve_option_strings=(-h --help --version --config.file --config.check --qmp.sockets --qmp.timeout --qmp.connection --collector.io --no-collector.io --collector.latency --no-collector.latency --collector.intervals --no-collector.intervals --collector.state --no-collector.state --collector.throttle --no-collector.throttle --collector.bitmaps --no-collector.bitmaps --collector.layers --no-collector.layers --collector.export --no-collector.export --collector.jobs --no-collector.jobs --collector.events --no-collector.events --collector.nodes --no-collector.nodes --collector.topology --collector.topology.max-age --web.listen-address --web.systemd-socket --web.config.file --web.telemetry-path --web.max-requests --web.disable-exporter-metrics --web.enable-lifecycle --web.enable-admin-api --web.external-url --web.route-prefix --admin.state-directory --log.level --log.format)
_shtab_qemu_block_exporter_once_option_strings=(-h --help --version --config.file --config.check --qmp.sockets --qmp.timeout --qmp.connection --collector.io --no-collector.io --collector.latency --no-collector.latency --collector.intervals --no-collector.intervals --collector.state --no-collector.state --collector.throttle --no-collector.throttle --collector.bitmaps --no-collector.bitmaps --collector.layers --no-collector.layers --collector.export --no-collector.export --collector.jobs --no-collector.jobs --collector.events --no-collector.events --collector.nodes --no-collector.nodes --collector.topology --collector.topology.max-age --web.listen-address --web.systemd-socket --web.config.file --web.telemetry-path --web.max-requests --web.disable-exporter-metrics --web.enable-lifecycle --web.enable-admin-api --web.external-url --web.route-prefix --admin.state-directory --log.level --log.format)
_shtab_qemu_block_exporter_demo_option_strings=(-h --help --version --config.file --config.check --qmp.sockets --qmp.timeout --qmp.connection --collector.io --no-collector.io --collector.latency --no-collector.latency --collector.intervals --no-collector.intervals --collector.state --no-collector.state --collector.throttle --no-collector.throttle --collector.bitmaps --no-collector.bitmaps --collector.layers --no-collector.layers --collector.export --no-collector.export --collector.jobs --no-collector.jobs --collector.events --no-collector.events --collector.nodes --no-collector.nodes --collector.topology --collector.topology.max-age --web.listen-address --web.systemd-socket --web.config.file --web.telemetry-path --web.max-requests --web.disable-exporter-metrics --web.enable-lifecycle --web.enable-admin-api --web.external-url --web.route-prefix --admin.state-directory --log.level --log.format)
_shtab_qemu_block_exporter_vms_option_strings=(-h --help --url --http.config.file --timeout --json)
_shtab_qemu_block_exporter_jobs_option_strings=(-h --help --watch --interval --all --url --http.config.file --timeout --json)
_shtab_qemu_block_exporter_chain_option_strings=(-h --help --url --http.config.file --timeout --json)
_shtab_qemu_block_exporter_commit_option_strings=(-h --help --top --base --job-id --no-job-id --speed --allow-unseen-neighbours --dry-run --wait --complete-when-ready --url --http.config.file --timeout --json)
_shtab_qemu_block_exporter_complete_option_strings=(-h --help --dry-run --wait --when-ready --url --http.config.file --timeout --json)
_shtab_qemu_block_exporter_cancel_option_strings=(-h --help --dry-run --force --no-force --url --http.config.file --timeout --json)
_shtab_qemu_block_exporter_pause_option_strings=(-h --help --dry-run --url --http.config.file --timeout --json)
_shtab_qemu_block_exporter_resume_option_strings=(-h --help --dry-run --url --http.config.file --timeout --json)
_shtab_qemu_block_exporter_speed_option_strings=(-h --help --dry-run --url --http.config.file --timeout --json)
_shtab_qemu_block_exporter_finalize_option_strings=(-h --help --dry-run --url --http.config.file --timeout --json)
_shtab_qemu_block_exporter_dismiss_option_strings=(-h --help --dry-run --url --http.config.file --timeout --json)
_shtab_qemu_block_exporter_snapshot_option_strings=(-h --help --dry-run --url --http.config.file --timeout --json)
_shtab_qemu_block_exporter_option_strings=(-h --help --version --config.file --config.check --qmp.sockets --qmp.timeout --qmp.connection --collector.io --no-collector.io --collector.latency --no-collector.latency --collector.intervals --no-collector.intervals --collector.state --no-collector.state --collector.throttle --no-collector.throttle --collector.bitmaps --no-collector.bitmaps --collector.layers --no-collector.layers --collector.export --no-collector.export --collector.jobs --no-collector.jobs --collector.events --no-collector.events --collector.nodes --no-collector.nodes --collector.topology --collector.topology.max-age --web.listen-address --web.systemd-socket --web.config.file --web.telemetry-path --web.max-requests --web.disable-exporter-metrics --web.enable-lifecycle --web.enable-admin-api --web.external-url --web.route-prefix --admin.state-directory --log.level --log.format)

_shtab_qemu_block_exporter_serve___config_file_COMPGEN=_shtab_compgen_files
_shtab_qemu_block_exporter_serve___web_config_file_COMPGEN=_shtab_compgen_files
_shtab_qemu_block_exporter_serve___admin_state_directory_COMPGEN=_shtab_compgen_dirs
_shtab_qemu_block_exporter_once___config_file_COMPGEN=_shtab_compgen_files
_shtab_qemu_block_exporter_once___web_config_file_COMPGEN=_shtab_compgen_files
_shtab_qemu_block_exporter_once___admin_state_directory_COMPGEN=_shtab_compgen_dirs
_shtab_qemu_block_exporter_demo___config_file_COMPGEN=_shtab_compgen_files
_shtab_qemu_block_exporter_demo___web_config_file_COMPGEN=_shtab_compgen_files
_shtab_qemu_block_exporter_demo___admin_state_directory_COMPGEN=_shtab_compgen_dirs
_shtab_qemu_block_exporter_vms___http_config_file_COMPGEN=_shtab_compgen_files
_shtab_qemu_block_exporter_jobs___http_config_file_COMPGEN=_shtab_compgen_files
_shtab_qemu_block_exporter_chain___http_config_file_COMPGEN=_shtab_compgen_files
_shtab_qemu_block_exporter_commit___http_config_file_COMPGEN=_shtab_compgen_files
_shtab_qemu_block_exporter_complete___http_config_file_COMPGEN=_shtab_compgen_files
_shtab_qemu_block_exporter_cancel___http_config_file_COMPGEN=_shtab_compgen_files
_shtab_qemu_block_exporter_pause___http_config_file_COMPGEN=_shtab_compgen_files
_shtab_qemu_block_exporter_resume___http_config_file_COMPGEN=_shtab_compgen_files
_shtab_qemu_block_exporter_speed___http_config_file_COMPGEN=_shtab_compgen_files
_shtab_qemu_block_exporter_finalize___http_config_file_COMPGEN=_shtab_compgen_files
_shtab_qemu_block_exporter_dismiss___http_config_file_COMPGEN=_shtab_compgen_files
_shtab_qemu_block_exporter_snapshot_pos_2_COMPGEN=_shtab_compgen_files
_shtab_qemu_block_exporter_snapshot___http_config_file_COMPGEN=_shtab_compgen_files
_shtab_qemu_block_exporter___config_file_COMPGEN=_shtab_compgen_files
_shtab_qemu_block_exporter___web_config_file_COMPGEN=_shtab_compgen_files
_shtab_qemu_block_exporter___admin_state_directory_COMPGEN=_shtab_compgen_dirs

_shtab_qemu_block_exporter_serve___qmp_connection_choices=(persistent per-scrape)
_shtab_qemu_block_exporter_serve___collector_topology_choices=(auto always never)
_shtab_qemu_block_exporter_serve___log_level_choices=(debug info warn error)
_shtab_qemu_block_exporter_serve___log_format_choices=(logfmt json)
_shtab_qemu_block_exporter_once___qmp_connection_choices=(persistent per-scrape)
_shtab_qemu_block_exporter_once___collector_topology_choices=(auto always never)
_shtab_qemu_block_exporter_once___log_level_choices=(debug info warn error)
_shtab_qemu_block_exporter_once___log_format_choices=(logfmt json)
_shtab_qemu_block_exporter_demo___qmp_connection_choices=(persistent per-scrape)
_shtab_qemu_block_exporter_demo___collector_topology_choices=(auto always never)
_shtab_qemu_block_exporter_demo___log_level_choices=(debug info warn error)
_shtab_qemu_block_exporter_demo___log_format_choices=(logfmt json)
_shtab_qemu_block_exporter_pos_0_choices=(serve once demo vms jobs chain commit complete cancel pause resume speed finalize dismiss snapshot)
_shtab_qemu_block_exporter___qmp_connection_choices=(persistent per-scrape)
_shtab_qemu_block_exporter___collector_topology_choices=(auto always never)
_shtab_qemu_block_exporter___log_level_choices=(debug info warn error)
_shtab_qemu_block_exporter___log_format_choices=(logfmt json)

_shtab_qemu_block_exporter_serve__h_nargs=0
_shtab_qemu_block_exporter_serve___help_nargs=0
_shtab_qemu_block_exporter_serve___version_nargs=0
_shtab_qemu_block_exporter_serve___config_check_nargs=0
_shtab_qemu_block_exporter_serve___collector_io_nargs=0
_shtab_qemu_block_exporter_serve___no_collector_io_nargs=0
_shtab_qemu_block_exporter_serve___collector_latency_nargs=0
_shtab_qemu_block_exporter_serve___no_collector_latency_nargs=0
_shtab_qemu_block_exporter_serve___collector_intervals_nargs=0
_shtab_qemu_block_exporter_serve___no_collector_intervals_nargs=0
_shtab_qemu_block_exporter_serve___collector_state_nargs=0
_shtab_qemu_block_exporter_serve___no_collector_state_nargs=0
_shtab_qemu_block_exporter_serve___collector_throttle_nargs=0
_shtab_qemu_block_exporter_serve___no_collector_throttle_nargs=0
_shtab_qemu_block_exporter_serve___collector_bitmaps_nargs=0
_shtab_qemu_block_exporter_serve___no_collector_bitmaps_nargs=0
_shtab_qemu_block_exporter_serve___collector_layers_nargs=0
_shtab_qemu_block_exporter_serve___no_collector_layers_nargs=0
_shtab_qemu_block_exporter_serve___collector_export_nargs=0
_shtab_qemu_block_exporter_serve___no_collector_export_nargs=0
_shtab_qemu_block_exporter_serve___collector_jobs_nargs=0
_shtab_qemu_block_exporter_serve___no_collector_jobs_nargs=0
_shtab_qemu_block_exporter_serve___collector_events_nargs=0
_shtab_qemu_block_exporter_serve___no_collector_events_nargs=0
_shtab_qemu_block_exporter_serve___collector_nodes_nargs=0
_shtab_qemu_block_exporter_serve___no_collector_nodes_nargs=0
_shtab_qemu_block_exporter_serve___web_systemd_socket_nargs=0
_shtab_qemu_block_exporter_serve___web_disable_exporter_metrics_nargs=0
_shtab_qemu_block_exporter_serve___web_enable_lifecycle_nargs=0
_shtab_qemu_block_exporter_serve___web_enable_admin_api_nargs=0
_shtab_qemu_block_exporter_once__h_nargs=0
_shtab_qemu_block_exporter_once___help_nargs=0
_shtab_qemu_block_exporter_once___version_nargs=0
_shtab_qemu_block_exporter_once___config_check_nargs=0
_shtab_qemu_block_exporter_once___collector_io_nargs=0
_shtab_qemu_block_exporter_once___no_collector_io_nargs=0
_shtab_qemu_block_exporter_once___collector_latency_nargs=0
_shtab_qemu_block_exporter_once___no_collector_latency_nargs=0
_shtab_qemu_block_exporter_once___collector_intervals_nargs=0
_shtab_qemu_block_exporter_once___no_collector_intervals_nargs=0
_shtab_qemu_block_exporter_once___collector_state_nargs=0
_shtab_qemu_block_exporter_once___no_collector_state_nargs=0
_shtab_qemu_block_exporter_once___collector_throttle_nargs=0
_shtab_qemu_block_exporter_once___no_collector_throttle_nargs=0
_shtab_qemu_block_exporter_once___collector_bitmaps_nargs=0
_shtab_qemu_block_exporter_once___no_collector_bitmaps_nargs=0
_shtab_qemu_block_exporter_once___collector_layers_nargs=0
_shtab_qemu_block_exporter_once___no_collector_layers_nargs=0
_shtab_qemu_block_exporter_once___collector_export_nargs=0
_shtab_qemu_block_exporter_once___no_collector_export_nargs=0
_shtab_qemu_block_exporter_once___collector_jobs_nargs=0
_shtab_qemu_block_exporter_once___no_collector_jobs_nargs=0
_shtab_qemu_block_exporter_once___collector_events_nargs=0
_shtab_qemu_block_exporter_once___no_collector_events_nargs=0
_shtab_qemu_block_exporter_once___collector_nodes_nargs=0
_shtab_qemu_block_exporter_once___no_collector_nodes_nargs=0
_shtab_qemu_block_exporter_once___web_systemd_socket_nargs=0
_shtab_qemu_block_exporter_once___web_disable_exporter_metrics_nargs=0
_shtab_qemu_block_exporter_once___web_enable_lifecycle_nargs=0
_shtab_qemu_block_exporter_once___web_enable_admin_api_nargs=0
_shtab_qemu_block_exporter_demo__h_nargs=0
_shtab_qemu_block_exporter_demo___help_nargs=0
_shtab_qemu_block_exporter_demo___version_nargs=0
_shtab_qemu_block_exporter_demo___config_check_nargs=0
_shtab_qemu_block_exporter_demo___collector_io_nargs=0
_shtab_qemu_block_exporter_demo___no_collector_io_nargs=0
_shtab_qemu_block_exporter_demo___collector_latency_nargs=0
_shtab_qemu_block_exporter_demo___no_collector_latency_nargs=0
_shtab_qemu_block_exporter_demo___collector_intervals_nargs=0
_shtab_qemu_block_exporter_demo___no_collector_intervals_nargs=0
_shtab_qemu_block_exporter_demo___collector_state_nargs=0
_shtab_qemu_block_exporter_demo___no_collector_state_nargs=0
_shtab_qemu_block_exporter_demo___collector_throttle_nargs=0
_shtab_qemu_block_exporter_demo___no_collector_throttle_nargs=0
_shtab_qemu_block_exporter_demo___collector_bitmaps_nargs=0
_shtab_qemu_block_exporter_demo___no_collector_bitmaps_nargs=0
_shtab_qemu_block_exporter_demo___collector_layers_nargs=0
_shtab_qemu_block_exporter_demo___no_collector_layers_nargs=0
_shtab_qemu_block_exporter_demo___collector_export_nargs=0
_shtab_qemu_block_exporter_demo___no_collector_export_nargs=0
_shtab_qemu_block_exporter_demo___collector_jobs_nargs=0
_shtab_qemu_block_exporter_demo___no_collector_jobs_nargs=0
_shtab_qemu_block_exporter_demo___collector_events_nargs=0
_shtab_qemu_block_exporter_demo___no_collector_events_nargs=0
_shtab_qemu_block_exporter_demo___collector_nodes_nargs=0
_shtab_qemu_block_exporter_demo___no_collector_nodes_nargs=0
_shtab_qemu_block_exporter_demo___web_systemd_socket_nargs=0
_shtab_qemu_block_exporter_demo___web_disable_exporter_metrics_nargs=0
_shtab_qemu_block_exporter_demo___web_enable_lifecycle_nargs=0
_shtab_qemu_block_exporter_demo___web_enable_admin_api_nargs=0
_shtab_qemu_block_exporter_vms__h_nargs=0
_shtab_qemu_block_exporter_vms___help_nargs=0
_shtab_qemu_block_exporter_vms___json_nargs=0
_shtab_qemu_block_exporter_jobs__h_nargs=0
_shtab_qemu_block_exporter_jobs___help_nargs=0
_shtab_qemu_block_exporter_jobs___watch_nargs=0
_shtab_qemu_block_exporter_jobs___all_nargs=0
_shtab_qemu_block_exporter_jobs___json_nargs=0
_shtab_qemu_block_exporter_chain__h_nargs=0
_shtab_qemu_block_exporter_chain___help_nargs=0
_shtab_qemu_block_exporter_chain___json_nargs=0
_shtab_qemu_block_exporter_commit__h_nargs=0
_shtab_qemu_block_exporter_commit___help_nargs=0
_shtab_qemu_block_exporter_commit___no_job_id_nargs=0
_shtab_qemu_block_exporter_commit___allow_unseen_neighbours_nargs=0
_shtab_qemu_block_exporter_commit___dry_run_nargs=0
_shtab_qemu_block_exporter_commit___wait_nargs=0
_shtab_qemu_block_exporter_commit___complete_when_ready_nargs=0
_shtab_qemu_block_exporter_commit___json_nargs=0
_shtab_qemu_block_exporter_complete__h_nargs=0
_shtab_qemu_block_exporter_complete___help_nargs=0
_shtab_qemu_block_exporter_complete___dry_run_nargs=0
_shtab_qemu_block_exporter_complete___wait_nargs=0
_shtab_qemu_block_exporter_complete___when_ready_nargs=0
_shtab_qemu_block_exporter_complete___json_nargs=0
_shtab_qemu_block_exporter_cancel__h_nargs=0
_shtab_qemu_block_exporter_cancel___help_nargs=0
_shtab_qemu_block_exporter_cancel___dry_run_nargs=0
_shtab_qemu_block_exporter_cancel___force_nargs=0
_shtab_qemu_block_exporter_cancel___no_force_nargs=0
_shtab_qemu_block_exporter_cancel___json_nargs=0
_shtab_qemu_block_exporter_pause__h_nargs=0
_shtab_qemu_block_exporter_pause___help_nargs=0
_shtab_qemu_block_exporter_pause___dry_run_nargs=0
_shtab_qemu_block_exporter_pause___json_nargs=0
_shtab_qemu_block_exporter_resume__h_nargs=0
_shtab_qemu_block_exporter_resume___help_nargs=0
_shtab_qemu_block_exporter_resume___dry_run_nargs=0
_shtab_qemu_block_exporter_resume___json_nargs=0
_shtab_qemu_block_exporter_speed__h_nargs=0
_shtab_qemu_block_exporter_speed___help_nargs=0
_shtab_qemu_block_exporter_speed___dry_run_nargs=0
_shtab_qemu_block_exporter_speed___json_nargs=0
_shtab_qemu_block_exporter_finalize__h_nargs=0
_shtab_qemu_block_exporter_finalize___help_nargs=0
_shtab_qemu_block_exporter_finalize___dry_run_nargs=0
_shtab_qemu_block_exporter_finalize___json_nargs=0
_shtab_qemu_block_exporter_dismiss__h_nargs=0
_shtab_qemu_block_exporter_dismiss___help_nargs=0
_shtab_qemu_block_exporter_dismiss___dry_run_nargs=0
_shtab_qemu_block_exporter_dismiss___json_nargs=0
_shtab_qemu_block_exporter_snapshot__h_nargs=0
_shtab_qemu_block_exporter_snapshot___help_nargs=0
_shtab_qemu_block_exporter_snapshot___dry_run_nargs=0
_shtab_qemu_block_exporter_snapshot___json_nargs=0
_shtab_qemu_block_exporter_pos_0_nargs=A...
_shtab_qemu_block_exporter__h_nargs=0
_shtab_qemu_block_exporter___help_nargs=0
_shtab_qemu_block_exporter___version_nargs=0
_shtab_qemu_block_exporter___config_check_nargs=0
_shtab_qemu_block_exporter___collector_io_nargs=0
_shtab_qemu_block_exporter___no_collector_io_nargs=0
_shtab_qemu_block_exporter___collector_latency_nargs=0
_shtab_qemu_block_exporter___no_collector_latency_nargs=0
_shtab_qemu_block_exporter___collector_intervals_nargs=0
_shtab_qemu_block_exporter___no_collector_intervals_nargs=0
_shtab_qemu_block_exporter___collector_state_nargs=0
_shtab_qemu_block_exporter___no_collector_state_nargs=0
_shtab_qemu_block_exporter___collector_throttle_nargs=0
_shtab_qemu_block_exporter___no_collector_throttle_nargs=0
_shtab_qemu_block_exporter___collector_bitmaps_nargs=0
_shtab_qemu_block_exporter___no_collector_bitmaps_nargs=0
_shtab_qemu_block_exporter___collector_layers_nargs=0
_shtab_qemu_block_exporter___no_collector_layers_nargs=0
_shtab_qemu_block_exporter___collector_export_nargs=0
_shtab_qemu_block_exporter___no_collector_export_nargs=0
_shtab_qemu_block_exporter___collector_jobs_nargs=0
_shtab_qemu_block_exporter___no_collector_jobs_nargs=0
_shtab_qemu_block_exporter___collector_events_nargs=0
_shtab_qemu_block_exporter___no_collector_events_nargs=0
_shtab_qemu_block_exporter___collector_nodes_nargs=0
_shtab_qemu_block_exporter___no_collector_nodes_nargs=0
_shtab_qemu_block_exporter___web_systemd_socket_nargs=0
_shtab_qemu_block_exporter___web_disable_exporter_metrics_nargs=0
_shtab_qemu_block_exporter___web_enable_lifecycle_nargs=0
_shtab_qemu_block_exporter___web_enable_admin_api_nargs=0


# $1=COMP_WORDS[1]
_shtab_compgen_files() {
  compgen -f -- $1  # files
}

# $1=COMP_WORDS[1]
_shtab_compgen_dirs() {
  compgen -d -- $1  # recurse into subdirs
}

# $1=COMP_WORDS[1]
_shtab_replace_nonword() {
  echo "${1//[^[:word:]]/_}"
}

# set default values (called for the initial parser & any subparsers)
_set_parser_defaults() {
  local subparsers_var="${prefix}_subparsers[@]"
  sub_parsers=${!subparsers_var-}

  local current_option_strings_var="${prefix}_option_strings[@]"
  current_option_strings=${!current_option_strings_var}

  completed_positional_actions=0

  _set_new_action "pos_$completed_positional_actions" true
}

# $1=action identifier
# $2=positional action (bool)
# set all identifiers for an action's parameters
_set_new_action() {
  current_action="${prefix}_$(_shtab_replace_nonword $1)"

  local current_action_compgen_var=${current_action}_COMPGEN
  current_action_compgen="${!current_action_compgen_var-}"

  local current_action_choices_var="${current_action}_choices[@]"
  current_action_choices="${!current_action_choices_var-}"

  local current_action_nargs_var="${current_action}_nargs"
  if [ -n "${!current_action_nargs_var-}" ]; then
    current_action_nargs="${!current_action_nargs_var}"
  else
    current_action_nargs=1
  fi

  current_action_args_start_index=$(( $word_index + 1 - $pos_only ))

  current_action_is_positional=$2
}

# Notes:
# `COMPREPLY`: what will be rendered after completion is triggered
# `completing_word`: currently typed word to generate completions for
# `${!var}`: evaluates the content of `var` and expand its content as a variable
#     hello="world"
#     x="hello"
#     ${!x} -> ${hello} -> "world"
_shtab_qemu_block_exporter() {
  local completing_word="${COMP_WORDS[COMP_CWORD]}"
  local previous_word="${COMP_WORDS[COMP_CWORD-1]}"
  local completed_positional_actions
  local current_action
  local current_action_args_start_index
  local current_action_choices
  local current_action_compgen
  local current_action_is_positional
  local current_action_nargs
  local current_option_strings
  local sub_parsers
  COMPREPLY=()

  local prefix=_shtab_qemu_block_exporter
  local word_index=0
  local pos_only=0 # "--" delimiter not encountered yet
  _set_parser_defaults
  word_index=1

  # determine what arguments are appropriate for the current state
  # of the arg parser
  while [ $word_index -ne $COMP_CWORD ]; do
    local this_word="${COMP_WORDS[$word_index]}"

    if [[ $pos_only = 1 || " $this_word " != " -- " ]]; then
      if [[ -n $sub_parsers && " ${sub_parsers[@]} " == *" $this_word "* ]]; then
        # valid subcommand: add it to the prefix & reset the current action
        prefix="${prefix}_$(_shtab_replace_nonword $this_word)"
        _set_parser_defaults
      fi

      if [[ " ${current_option_strings[@]} " == *" $this_word "* ]]; then
        # a new action should be acquired (due to recognised option string or
        # no more input expected from current action);
        # the next positional action can fill in here
        _set_new_action $this_word false
      fi

      if [[ "$current_action_nargs" != "*" ]] && \
         [[ "$current_action_nargs" != "+" ]] && \
         [[ "$current_action_nargs" != "?" ]] && \
         [[ "$current_action_nargs" != *"..." ]] && \
         (( $word_index + 1 - $current_action_args_start_index - $pos_only >= \
            $current_action_nargs )); then
        $current_action_is_positional && let "completed_positional_actions += 1"
        _set_new_action "pos_$completed_positional_actions" true
      fi
    else
      pos_only=1 # "--" delimiter encountered
    fi

    let "word_index+=1"
  done

  # Generate the completions

  COMPREPLY=()
  if [[ $pos_only = 0 && "$completing_word" == -* &&
        ( -z "$current_action_compgen" || "$current_action_is_positional" = true ) ]]; then
    # optional argument started: use option strings
    while IFS= read -r line; do COMPREPLY+=("$line"); done < <(
      compgen -W "${current_option_strings[*]}" -- "$completing_word")
  elif [[ "$previous_word" =~ ^[0-9\&]*[\<\>]\>?$ ]]; then
    # handle redirection operators
    compopt -o filenames 2>/dev/null || : # bash>=4
    while IFS= read -r line; do COMPREPLY+=("$line"); done < <(compgen -f -- "$completing_word")
  else
    # use choices & compgen
    local action_compgen_word="$completing_word"
    # handle tab-completing in the middle of a line (#248 <- #116)
    [[ -n "$current_action_compgen" && "$completing_word" == -* ]] && action_compgen_word=""
    [ -n "$current_action_compgen" ] && {
      [[ "$current_action_compgen" =~ _(file|dir|glob|FILE|DIR|GLOB)|File|Dir|Glob ]] &&
        compopt -o filenames 2>/dev/null || : # bash>=4
      while IFS= read -r line; do COMPREPLY+=("$line"); done < <(
        "$current_action_compgen" "$action_compgen_word")
    }
    while IFS= read -r line; do COMPREPLY+=("$line"); done < <(
      compgen -W "${current_action_choices[*]}" -- "$completing_word")
  fi

  if [[ ${#COMPREPLY[@]} = 0 ]]; then
    # native fallback matches are not necessarily filenames (e.g. variables)
    compopt +o filenames 2>/dev/null || : # bash>=4
  fi

  return 0
}

complete -o bashdefault -F _shtab_qemu_block_exporter qemu-block-exporter