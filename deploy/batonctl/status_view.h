/* What a router says of workers and requests, in rows and as JSON. */
#ifndef BATON_DEPLOY_BATONCTL_STATUS_VIEW_H
#define BATON_DEPLOY_BATONCTL_STATUS_VIEW_H

#include <jansson.h>

#include "deploy/batonctl/connection.h"

#define CTL_ROW_SIZE 1024

const char *ctl_view_role(const Baton__V1__WorkerStatus *worker);
/* "decode-0 1/4", or "-". */
void ctl_view_group(const Baton__V1__WorkerStatus *worker, char ret_text[80]);
/* What is missing in it is zeros. */
Baton__V1__RankLoad ctl_view_load(const Baton__V1__WorkerStatus *worker);
/* JSON has no NaN and no infinity. */
double ctl_view_number(double value);

/* Rows end without a line's end; `wide`: more columns. */
void ctl_view_worker_head(bool wide, char ret_row[CTL_ROW_SIZE]);
void ctl_view_worker_row(const Baton__V1__WorkerStatus *worker, bool wide,
                         char ret_row[CTL_ROW_SIZE]);
void ctl_view_request_head(bool wide, char ret_row[CTL_ROW_SIZE]);
void ctl_view_request_row(const Baton__V1__RequestStatus *request, bool wide,
                          char ret_row[CTL_ROW_SIZE]);

void ctl_view_print_workers(const Baton__V1__StatusResponse *status, bool wide);
void ctl_view_print_requests(const Baton__V1__StatusResponse *status, bool wide);

json_t *ctl_view_worker_json(const Baton__V1__WorkerStatus *worker);
json_t *ctl_view_request_json(const Baton__V1__RequestStatus *request);
json_t *ctl_view_workers_json(const Baton__V1__StatusResponse *status);
json_t *ctl_view_requests_json(const Baton__V1__StatusResponse *status);

#endif
